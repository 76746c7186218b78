"""Does the training script resume rightly? What its run says of that, or what would tell it."""

from __future__ import annotations

from pathlib import Path

from autoresume.audit import verdict
from autoresume.base.findings import Finding, Verdict

_NAME = "script"
_DRILL = (
    "autoresume run --rehearse (or sbatch --rehearse) tries it before a new run is begun; autoresume drill at length."
)


def resumes(run_dir: Path) -> Finding:
    """By the steps that were trained again after a crash."""
    known = verdict.read(run_dir)
    fault = next((one for one in known if one.is_fault), None)
    if fault is not None and fault.difference is not None:
        means = f"after a crash it is another training. Likely cause: {fault.difference['cause']}"
        return Finding(_NAME, Verdict.FAIL, f"in life {fault.life} {fault.words()}", means, fault.difference["remedy"])
    same = verdict.summary(known)
    if same is not None:
        return Finding(_NAME, Verdict.PASS, same, "this script resumes here as if it had not been interrupted")
    return Finding(_NAME, Verdict.UNKNOWN, "not tried yet", "whether it resumes bit for bit only a trial shows", _DRILL)
