"""The likely cause is what was seen, the likeliest first."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoresume.audit.causes import Evidence, Suspect, likely
from autoresume.audit.verdict import Retrained, read, summary, write

COUNTER = Suspect("main: seen", "value", "4", "", "4")
EMA = Suspect("main: ema", "model", "Linear", "Linear", "Linear")


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        (Evidence("loss"), "nondeterministic kernels"),
        (Evidence("loss", suspects=[COUNTER]), "state in variables"),
        (Evidence("loss", suspects=[COUNTER], is_rounding=True), "nondeterministic kernels"),
        (Evidence("loss", machines=("EPYC", "Xeon"), is_rounding=True), "another machine"),
        (Evidence("loss", suspects=[EMA], is_rounding=True), "model not tracked"),
        (Evidence("loss", unseeded=["python"]), "not seeded"),
        (Evidence("loss", moved=True), "seeded again"),
        (Evidence("loss", loose=["AdamW"]), "optimizer not tracked"),
        (Evidence("loss", loose=["AdamW"], has_tracked_optimizer=True), "optimizer rebuilt"),
        (Evidence("batch", workers=2), "worker randomness"),
        (Evidence("batch", workers=2, left_alone=True), "position in the data"),
        (Evidence("batch"), "position in the data"),
        (Evidence("generator", name="torch"), "seeded again"),
        (Evidence("state", name="epochs", first_after_resume=True), "counted twice"),
        (Evidence("metric", name="accuracy"), "unknown"),
    ],
)
def test_what_was_seen_is_what_is_told(seen: Evidence, name: str) -> None:
    """Sums that came out otherwise by a hair are the machine's, or the kernels'; not so where state is missing."""
    cause = likely(seen)
    assert cause.name == name
    assert cause.why
    assert cause.remedy


def test_of_several_ranks_the_first_counts(tmp_path: Path) -> None:
    """The earliest step, in it what leads to the rest, then the lowest rank; a life without a difference is one word of
    rank 0's. A torn report is none."""

    def difference(step: int, component: str) -> dict[str, object]:
        return {"step": step, "component": component, "words": f"the {component} differs", "expected": []}

    write(tmp_path, Retrained(2, 0, 1, 6, 7, difference(7, "batch")))
    write(tmp_path, Retrained(2, 1, 1, 6, 6, difference(6, "metric")))
    write(tmp_path, Retrained(2, 3, 1, 6, 6, difference(6, "loss")))
    write(tmp_path, Retrained(3, 0, 2, 8, 11))
    (tmp_path / "reports" / "0004-retrained-00000.json").write_text("{")
    found = read(tmp_path)
    assert [(one.life, one.rank) for one in found] == [(2, 3), (3, 0)]
    assert summary(found) == "in life 2 step 6, trained again: the loss differs"
    assert summary(found[1:]) == "4 steps were trained again after crashes, and came out bit for bit the same"
    assert summary([]) is None
