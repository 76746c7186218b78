"""What a look at a cluster, a machine or a folder has found: values only.

Law: `fail` means that a preemption ends the run, or that it can't be trained or saved at all; `warn`, that
something is lost or has to be done by hand; `unknown`, that it could not be looked at. Nothing here looks.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Verdict(enum.Enum):
    PASS = "pass"  # noqa: S105  (a verdict, no password)
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    found: str
    """What is so."""
    means: str
    """What follows for this run."""
    remedy: str = ""
    """What to do; empty where nothing is to be done."""


def summary(findings: Iterable[Finding]) -> str:
    """One line: how many of each, and what that comes to."""
    verdicts = [finding.verdict for finding in findings]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict)
    if Verdict.FAIL in verdicts:
        return f"{counts}: as it is, a preemption may end this run for good"
    if Verdict.WARN in verdicts:
        return f"{counts}: a preemption is survived, if the warnings are heeded"
    return f"{counts}: nothing speaks against surviving a preemption"


def format_bytes(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB" if count < 1000 else f"{count / 1000:.2f} TB"
