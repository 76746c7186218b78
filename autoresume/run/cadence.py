"""When the next periodic save is due.

Law: pure; time comes in as an argument. In steps it is the same on every rank; in seconds rank 0
decides and the others are told. "auto" balances what saves cost against what a failure loses:
interval = sqrt(2 * cost * time between failures) (Young 1974; Daly 2006, first order). The time between
failures is this run's own. A save is not asked for while the last one keeps the disk busy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from autoresume.checkpoint.incarnation import Incarnation
from autoresume.node.causes import Cause

FIRST_SECONDS = 60.0
LEAST_SECONDS = 30.0
MOST_SECONDS = 1800.0
ASSUMED_FAILURE_SECONDS = 4 * 3600.0
"""Between failures, until this run has seen some: a preemption every few hours."""
DURABLE_TIMES = 4
"""An interval is at least so many times as long as it takes to make a save durable."""

_NO_FAILURES = {Cause.FINISHED, Cause.TIME_LIMIT, Cause.REQUEUED, Cause.CANCELLED, Cause.STOPPED, Cause.LEFT, "ended"}
"""Ends that were wanted, or foreseen: nothing was lost by them that a save would have kept."""


def time_between_failures(lives: Iterable[tuple[float, bool]]) -> float:
    """Mean seconds between failures, of (seconds lived, whether it ended by a failure) of each life.

    As if there had been one more failure, after ASSUMED_FAILURE_SECONDS: few lives say little.
    """
    seconds, failures = ASSUMED_FAILURE_SECONDS, 1
    for lived, failed in lives:
        seconds += max(0.0, lived)
        failures += failed
    return seconds / failures


def life_seconds(record: Incarnation, last_sign: float | None) -> tuple[float, bool]:
    """The seconds of a life that is over, and whether a failure ended it: whatever nobody wanted.

    `last_sign` (seconds since 1970) stands for its end where nobody wrote that down.
    """
    ended = record.ended or {"how": "died", "time": last_sign}
    try:
        seconds = float(ended["time"]) - float(record.began["time"])
    except (KeyError, TypeError, ValueError):
        seconds = 0.0
    return max(0.0, seconds), (ended.get("cause") or ended.get("how")) not in _NO_FAILURES


@dataclass
class Cadence:
    """`steps` or `seconds` is set; seconds = 0 means auto."""

    steps: int | None
    seconds: float | None
    now: float
    cost_seconds: float | None = None
    """For which a save stops training."""
    durable_seconds: float | None = None
    """From a save to its being durable, in the background."""
    failure_seconds: float = ASSUMED_FAILURE_SECONDS
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.now

    def due_by_step(self, step: int) -> bool:
        return self.steps is not None and step % self.steps == 0

    def due_by_time(self, now: float) -> bool:
        return self.steps is None and now - self._last >= self.interval_seconds

    @property
    def is_auto(self) -> bool:
        return self.steps is None and not self.seconds

    @property
    def interval_seconds(self) -> float:
        if self.seconds:
            return self.seconds
        if self.cost_seconds is None:
            return FIRST_SECONDS
        optimum = math.sqrt(2 * self.cost_seconds * self.failure_seconds)
        return max(min(MOST_SECONDS, max(LEAST_SECONDS, optimum)), DURABLE_TIMES * (self.durable_seconds or 0.0))

    def next_in_words(self, step: int, now: float) -> str:
        """When the next save is due, for people."""
        if self.steps is not None:
            return f"at step {(step // self.steps + 1) * self.steps}"
        return f"in {max(0.0, self._last + self.interval_seconds - now):.0f} s"

    def note_saved(self, now: float, stall_seconds: float) -> None:
        """A save was taken, and stopped training for that long. The cost is smoothed over saves."""
        self._last = now
        self.cost_seconds = _smoothed(self.cost_seconds, stall_seconds)

    def note_durable(self, seconds: float) -> None:
        """A save has become durable, so long after it was taken. Smoothed as well."""
        self.durable_seconds = _smoothed(self.durable_seconds, seconds)


def _smoothed(old: float | None, new: float) -> float:
    return new if old is None else 0.7 * old + 0.3 * new
