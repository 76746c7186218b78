"""Python and torch, as they are installed: nothing is imported to find out."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata

from autoresume.base.findings import Finding, Verdict

_TORCH = (2, 4)


def look() -> list[Finding]:
    try:
        version: str | None = metadata.version("torch")
    except metadata.PackageNotFoundError:
        version = None
    return [
        Finding("python", Verdict.PASS, f"{platform.python_version()} at {sys.executable}", "as here, so on the nodes"),
        torch(version),
    ]


def torch(version: str | None) -> Finding:
    """`version` as it is installed; None if it isn't."""
    if version is None:
        return Finding(
            "torch",
            Verdict.FAIL,
            "not installed here",
            "nothing can be trained",
            f"{sys.executable} -m pip install torch",
        )
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match.group(1)), int(match.group(2))) < _TORCH:
        return Finding("torch", Verdict.FAIL, version, "autoresume needs 2.4 or later", "Install a newer torch.")
    return Finding("torch", Verdict.PASS, version, "2.4 or later is needed")
