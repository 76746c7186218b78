"""How long a training may go without a step before it counts as hanging: learnt from its own steps.

Law: pure. Before the first step nothing is known (compilation, a first epoch's caches, a slow file system), so
that much is allowed; afterwards a multiple of the longest step so far, which an evaluation or a checkpoint's wait
belongs to.
"""

from __future__ import annotations

import math

FIRST_STEP_SECONDS = 3600.0
LEAST_SECONDS = 600.0
TIMES_THE_LONGEST = 10.0


class HangTimeout:
    """`given` seconds, if the run's options name them, stand for what is learnt."""

    def __init__(self) -> None:
        self.given: float | None = None
        self.longest_seconds = 0.0

    def note(self, seconds: float) -> None:
        """A step took so long."""
        self.longest_seconds = max(self.longest_seconds, seconds)

    def seconds(self, stepped: bool) -> float:
        if self.given is not None:
            return self.given if stepped else max(self.given, FIRST_STEP_SECONDS)
        if not stepped:
            return FIRST_STEP_SECONDS
        return max(LEAST_SECONDS, math.ceil(TIMES_THE_LONGEST * self.longest_seconds))
