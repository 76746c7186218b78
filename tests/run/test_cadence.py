"""Cadence: every so many steps, every so many seconds, or Young and Daly's optimum."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresume.checkpoint.incarnation import Incarnation
from autoresume.run.cadence import (
    ASSUMED_FAILURE_SECONDS,
    DURABLE_TIMES,
    FIRST_SECONDS,
    LEAST_SECONDS,
    MOST_SECONDS,
    Cadence,
    life_seconds,
    time_between_failures,
)

positive = st.floats(1e-6, 1e9)


def auto(now: float = 0.0) -> Cadence:
    return Cadence(None, 0.0, now)


def test_steps_are_the_same_on_every_rank() -> None:
    """With a number of steps the step alone decides; the clock never does."""
    cadence = Cadence(5, None, 0.0)
    assert [step for step in range(1, 16) if cadence.due_by_step(step)] == [5, 10, 15]
    assert not cadence.due_by_time(1e9)
    cadence.note_saved(7.0, 1.0)
    assert cadence.due_by_step(20)


def test_seconds_count_from_the_last_save() -> None:
    """With a time the first save comes one interval after the start, the next one interval after that save."""
    cadence = Cadence(None, 10.0, 100.0)
    assert (cadence.due_by_time(109.9), cadence.due_by_time(110.0)) == (False, True)
    cadence.note_saved(113.0, 0.5)
    assert (cadence.due_by_time(122.9), cadence.due_by_time(123.0)) == (False, True)
    assert not cadence.due_by_step(10)


def test_before_the_first_save_a_minute_is_assumed() -> None:
    """Auto does not know the cost of a save yet: the first one comes soon, and measures it."""
    cadence = auto(50.0)
    assert cadence.interval_seconds == FIRST_SECONDS == 60.0
    assert (cadence.due_by_time(109.0), cadence.due_by_time(110.0)) == (False, True)


def test_young_and_daly() -> None:
    """sqrt(2 * cost * time between failures): 2 s and 4 h give 240 s."""
    cadence = auto()
    cadence.note_saved(0.0, 2.0)
    assert cadence.failure_seconds == ASSUMED_FAILURE_SECONDS == 4 * 3600
    assert cadence.interval_seconds == pytest.approx(240.0)
    cadence.failure_seconds = 3600.0
    assert cadence.interval_seconds == pytest.approx(120.0)


@given(positive, positive)
def test_the_interval_is_the_optimum_within_bounds(cost: float, failure: float) -> None:
    """Never below half a minute, never above half an hour; in between no other interval loses less.

    What is lost in an interval t: cost / t for saving, and t / (2 * failure) for what is done again.
    """
    cadence = auto()
    cadence.failure_seconds = failure
    cadence.note_saved(0.0, cost)
    interval = cadence.interval_seconds
    assert LEAST_SECONDS <= interval <= MOST_SECONDS

    def loss(t: float) -> float:
        return cost / t + t / (2 * failure)

    for other in (interval * 0.9, interval * 1.1):
        if LEAST_SECONDS <= other <= MOST_SECONDS:
            assert loss(interval) <= loss(other) * (1 + 1e-9)


def test_a_free_save_is_not_taken_all_the_time() -> None:
    """A stall of nothing gives the shortest interval, and no division by it."""
    cadence = auto()
    cadence.note_saved(0.0, 0.0)
    assert cadence.interval_seconds == LEAST_SECONDS


def test_one_slow_save_does_not_change_everything() -> None:
    """The cost is smoothed: an outlier counts for three tenths, and is forgotten bit by bit."""
    cadence = auto()
    cadence.note_saved(0.0, 1.0)
    cadence.note_saved(1.0, 11.0)
    assert cadence.cost_seconds == pytest.approx(4.0)
    for _ in range(40):
        cadence.note_saved(2.0, 1.0)
    assert cadence.cost_seconds == pytest.approx(1.0, abs=1e-3)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_the_smoothed_cost_lies_between_what_was_measured(costs: list[float]) -> None:
    """A mean of what was seen, whatever it was."""
    cadence = auto()
    for cost in costs:
        cadence.note_saved(0.0, cost)
    assert cadence.cost_seconds is not None
    assert min(costs) - 1e-9 <= cadence.cost_seconds <= max(costs) + 1e-9
    assert math.isfinite(cadence.interval_seconds)


def test_what_was_asked_for_is_not_bounded() -> None:
    """Bounds are for what we choose; a user's seconds are a user's seconds."""
    assert Cadence(None, 1.0, 0.0).interval_seconds == 1.0
    assert Cadence(None, 1e5, 0.0).interval_seconds == 1e5


# -- how long until it is durable --------------------------------------------------------------------


@given(positive, positive, positive)
def test_the_disk_is_not_always_busy(cost: float, failure: float, durable: float) -> None:
    """However often failures come, a save follows four times the time that one takes to become durable, or later."""
    cadence = auto()
    cadence.failure_seconds = failure
    cadence.note_saved(0.0, cost)
    before = cadence.interval_seconds
    cadence.note_durable(durable)
    assert cadence.interval_seconds == max(before, DURABLE_TIMES * durable)


def test_a_slow_disk_does_not_change_what_was_asked_for() -> None:
    """A user's seconds stay a user's seconds; and his steps his steps."""
    for cadence in (Cadence(None, 5.0, 0.0), Cadence(7, None, 0.0)):
        cadence.note_durable(100.0)
        assert not cadence.is_auto
    assert Cadence(None, 5.0, 0.0, durable_seconds=100.0).interval_seconds == 5.0
    assert auto().is_auto


# -- how often it fails ------------------------------------------------------------------------------

lives = st.lists(st.tuples(st.floats(0, 1e8), st.booleans()), max_size=30)


def test_a_new_run_is_assumed_to_fail_every_four_hours() -> None:
    """And what it lives through changes that: (lived + 4 h) / (failures + 1)."""
    hour = 3600.0
    assert time_between_failures([]) == ASSUMED_FAILURE_SECONDS == 4 * hour
    assert time_between_failures([(4 * hour, True)]) == 4 * hour
    assert time_between_failures([(20 * hour, False)]) == 24 * hour
    assert time_between_failures([(0.4 * hour, True)] * 5) == pytest.approx(hour)


@given(lives, st.floats(0, 1e8))
def test_failures_make_it_shorter_and_time_longer(past: list[tuple[float, bool]], more: float) -> None:
    """One life more: the longer it lived the longer the time between failures; and longer if it did not fail."""
    before = time_between_failures(past)
    assert time_between_failures([*past, (more, False)]) >= before
    assert time_between_failures([*past, (more, True)]) <= time_between_failures([*past, (more, False)])
    assert time_between_failures([*past, (0.0, True)]) < before
    assert before >= ASSUMED_FAILURE_SECONDS / (1 + sum(failed for _, failed in past))


@given(lives)
def test_the_order_of_lives_does_not_matter(past: list[tuple[float, bool]]) -> None:
    """Nor do seconds below nothing, of clocks that differ, take anything from the others."""
    assert time_between_failures(past) == pytest.approx(time_between_failures(past[::-1]))
    assert time_between_failures([*past, (-1e9, False)]) == time_between_failures(past)


def life(began: object, ended: dict[str, object] | None) -> Incarnation:
    return Incarnation(1, "run", "host", "boot", [(7, 1.5)], 2, ["train.py"], began={"time": began}, ended=ended)


@pytest.mark.parametrize(
    ("ended", "failed"),
    [
        ({"how": "interrupted", "cause": "preempted"}, True),
        ({"how": "died", "cause": "node failure"}, True),
        ({"how": "died", "cause": "killed"}, True),
        ({"how": "died", "cause": "out of memory"}, True),
        ({"how": "died", "cause": "hang"}, True),
        ({"how": "failed", "cause": "error"}, True),
        ({"how": "failed"}, True),
        ({"how": "died"}, True),
        ({"how": "interrupted"}, True),
        ({"how": "finished"}, False),
        ({"how": "finished", "cause": "finished"}, False),
        ({"how": "interrupted", "cause": "stopped"}, False),
        ({"how": "interrupted", "cause": "cancelled"}, False),
        ({"how": "interrupted", "cause": "requeued"}, False),
        ({"how": "interrupted", "cause": "time limit"}, False),
        ({"how": "ended"}, False),
    ],
)
def test_what_counts_as_a_failure(ended: dict[str, object], failed: bool) -> None:
    """Whatever nobody wanted. Where no daemon knows the cause of a signal it counts: it may be a preemption."""
    assert life_seconds(life(1000.0, {**ended, "time": 1250.0}), None) == (250.0, failed)


def test_a_life_without_a_word_of_its_end_lasted_until_its_last_sign() -> None:
    """Not until it was found dead, which may be days later; and for no time at all if there was no sign."""
    assert life_seconds(life(1000.0, None), 1030.0) == (30.0, True)
    assert life_seconds(life(1000.0, None), None) == (0.0, True)
    assert life_seconds(life("noon", {"how": "finished", "time": 5.0}), None) == (0.0, False)
