"""When the next periodic save is due.

Law: pure; time comes in as an argument. In steps it is the same on every rank; in seconds rank 0
decides and the others are told. "auto" balances what saves cost against what a failure loses:
interval = sqrt(2 * cost * time between failures) (Young 1974; Daly 2006, first order).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

FIRST_SECONDS = 60.0
LEAST_SECONDS = 30.0
MOST_SECONDS = 1800.0
ASSUMED_FAILURE_SECONDS = 4 * 3600.0
"""Mean time between failures until this run has seen some: a preemption every few hours."""


@dataclass
class Cadence:
    """`steps` or `seconds` is set; seconds = 0 means auto."""

    steps: int | None
    seconds: float | None
    now: float
    cost_seconds: float | None = None
    failure_seconds: float = ASSUMED_FAILURE_SECONDS
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.now

    def due_by_step(self, step: int) -> bool:
        return self.steps is not None and step % self.steps == 0

    def due_by_time(self, now: float) -> bool:
        return self.steps is None and now - self._last >= self.interval_seconds

    @property
    def interval_seconds(self) -> float:
        if self.seconds:
            return self.seconds
        if self.cost_seconds is None:
            return FIRST_SECONDS
        optimum = math.sqrt(2 * self.cost_seconds * self.failure_seconds)
        return min(MOST_SECONDS, max(LEAST_SECONDS, optimum))

    def saved(self, now: float, stall_seconds: float) -> None:
        """A save was taken, and stopped training for that long. The cost is smoothed over saves."""
        self._last = now
        old = self.cost_seconds
        self.cost_seconds = stall_seconds if old is None else 0.7 * old + 0.3 * stall_seconds
