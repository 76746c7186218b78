"""How long a training may go without a step: learnt from its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autoresume.node.hang_timeout import FIRST_STEP_SECONDS, LEAST_SECONDS, HangTimeout


def test_before_the_first_step_nothing_is_known() -> None:
    """An hour, whatever a short `hang_after` says of later steps; a longer one counts."""
    patience = HangTimeout()
    assert patience.seconds(stepped=False) == FIRST_STEP_SECONDS
    patience.given = 5.0
    assert (patience.seconds(stepped=False), patience.seconds(stepped=True)) == (FIRST_STEP_SECONDS, 5.0)
    patience.given = 2 * FIRST_STEP_SECONDS
    assert patience.seconds(stepped=False) == 2 * FIRST_STEP_SECONDS


def test_an_option_stands_for_what_is_learnt() -> None:
    """Its user knows better, in both directions."""
    patience = HangTimeout()
    patience.note(500.0)
    for chosen in (1.0, 1e9):
        patience.given = chosen
        assert patience.seconds(stepped=True) == chosen


@given(st.lists(st.floats(0, 1e5), max_size=20))
def test_the_longest_step_counts(steps: list[float]) -> None:
    """Ten times as long as an evaluation or a checkpoint once took is no hang; ten minutes never are."""
    patience = HangTimeout()
    for seconds in steps:
        patience.note(seconds)
    allowed = patience.seconds(stepped=True)
    assert allowed >= LEAST_SECONDS
    assert all(allowed >= 10 * seconds for seconds in steps)
    assert allowed <= max(LEAST_SECONDS, 10 * max(steps, default=0) + 1)
