"""What a run's own record says of its script."""

from __future__ import annotations

from pathlib import Path

from autoresume.audit.verdict import Retrained, write
from autoresume.base.findings import Verdict
from autoresume.checks.script import resumes


def test_a_script_is_judged_by_its_crashes(tmp_path: Path) -> None:
    """None yet: how to try it. All that was trained again the same: it resumes. A difference: what to do; one that follows
    from a change of the script is none."""
    assert resumes(tmp_path).verdict is Verdict.UNKNOWN
    assert "--rehearse" in resumes(tmp_path).remedy
    write(tmp_path, Retrained(2, 0, 1, 6, 9))
    assert resumes(tmp_path).verdict is Verdict.PASS
    changed = {"step": 6, "component": "loss", "words": "the loss differs", "cause": "x", "remedy": "y"}
    write(tmp_path, Retrained(3, 0, 2, 6, 6, {**changed, "expected": ["config.lr: 1 -> 2"]}))
    assert resumes(tmp_path).verdict is Verdict.PASS
    write(tmp_path, Retrained(4, 1, 3, 6, 6, {**changed, "expected": []}))
    found = resumes(tmp_path)
    assert (found.verdict, found.remedy) == (Verdict.FAIL, "y")
    assert found.found == "in life 4 step 6, trained again: the loss differs"
