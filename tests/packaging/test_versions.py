"""The versions that are promised, and those that are tried, are the same."""

from __future__ import annotations

import re
from pathlib import Path

from tests.packaging import closure

REPOSITORY = Path(__file__).parents[2]
PROJECT = REPOSITORY / "pyproject.toml"
EXTRAS_OF_CORE = {"cloudpickle", "tensorboard", "torchdata"}


def pinned(name: str) -> dict[str, str]:
    lines = (REPOSITORY / name).read_text().splitlines()
    return dict(line.lower().partition(";")[0].strip().split("==") for line in lines if not line.startswith("#"))


def test_the_oldest_versions_are_the_bounds() -> None:
    """constraints-oldest.txt holds each lower bound of pyproject.toml, with the core's extras, and nothing else."""
    bounds = dict(re.findall(r'^\s+"([\w-]+)>=([\d.]+)"', PROJECT.read_text(), re.MULTILINE))
    extras = dict(re.findall(r'= \["([\w-]+)>=([\d.]+)"\]', PROJECT.read_text()))
    oldest = pinned("constraints-oldest.txt")
    declared = {re.match(r"[\w-]+", line)[0] for line in closure.declared(PROJECT)}  # type: ignore[index]
    assert set(oldest) == declared | EXTRAS_OF_CORE
    for name, version in oldest.items():
        bound = {**bounds, **extras}[name]
        assert version == bound + ".0" * (version.count(".") - bound.count(".")), name
