"""What a user has who installs the wheel: the declared dependencies, and theirs, taken from the running environment.

Law: nothing else of the running environment can be imported beside them, so that an import that is not declared fails.
Nothing is downloaded, and torch is not copied: a distribution is there as links to its files.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement


def declared(project: Path) -> list[str]:
    """The requirements of a pyproject.toml."""
    lines = re.search(r"^dependencies = \[\n(.*?)^\]", project.read_text(), re.MULTILINE | re.DOTALL)
    assert lines is not None
    return re.findall(r'"(.*?)"', lines[1])


def closure(requirements: Iterable[str]) -> list[metadata.Distribution]:
    """The distributions that these requirements, and theirs, ask for here."""
    waiting, seen = [Requirement(line) for line in requirements], set[tuple[str, str]]()
    found: dict[str, metadata.Distribution] = {}
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if (name, extra) in seen or not _applies(requirement, ""):
                continue
            seen.add((name, extra))
            found[name] = metadata.distribution(name)
            theirs = [Requirement(line) for line in found[name].requires or []]
            waiting += [_unconditional(one) for one in theirs if _applies(one, extra)]
    return [found[name] for name in sorted(found)]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _unconditional(requirement: Requirement) -> Requirement:
    requirement.marker = None
    return requirement


def link(distributions: Iterable[metadata.Distribution], folder: Path) -> None:
    """Make `folder` hold these distributions, each file or package at its top as a link."""
    for distribution in distributions:
        for file in distribution.files or []:
            top = file.parts[0]
            if top in ("..", "__pycache__") or (folder / top).is_symlink():
                continue
            (folder / top).symlink_to(Path(str(distribution.locate_file(top))))


def write_scripts(distributions: Iterable[metadata.Distribution], binaries: Path) -> None:
    """Make the commands of these distributions (torchrun) in `binaries`, as an installer does."""
    for distribution in distributions:
        for point in distribution.entry_points.select(group="console_scripts"):
            script = binaries / point.name
            script.write_text(
                f"#!{binaries / 'python'}\nimport sys\nfrom {point.module} import {point.attr}\nsys.exit({point.attr}())\n"
            )
            script.chmod(0o755)
