"""What is worth saying when a job is submitted: where its partition makes a preemption worse than it need be.

Law: asks Slurm, judges by `checks`, and is silent where it can't: a submission never fails for want of a remark.
"""

from __future__ import annotations

from autoresume.base.findings import Finding, Verdict
from autoresume.errors import AutoresumeError
from autoresume.slurm import checks, queue

_TOLD = ("partition", "when preempted")
"""Warnings of `autoresume doctor` that a submission is told of, and all that fails; the others are for whoever asks."""


def of_partition(name: str | None) -> list[Finding]:
    """Of the partition called `name` (the first, of several), or of the default one."""
    try:
        known = queue.partitions()
        configuration = queue.configuration()
    except AutoresumeError:
        return []
    default = next((one for one in known.values() if one.get("Default") == "YES"), None)
    settings = known.get(name.split(",")[0]) if name else default
    if settings is None:
        return []
    found = checks.partition(configuration, settings)
    return [one for one in found if one.verdict is Verdict.FAIL or (one.verdict is Verdict.WARN and one.name in _TOLD)]
