"""What all ranks call the checkpoint of one step: its step, epoch and samples.

Law: with uneven inputs ranks stand at different epochs and samples at the same step; a checkpoint is named by the rank
that came furthest. Ranks tell each other where they stand until that was the same once, and cannot but stay the same.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from autoresume.run.resources import Resources

log = logging.getLogger("autoresume")


class Position(NamedTuple):
    """Steps completed, the epoch, and the samples that all ranks saw."""

    step: int
    epoch: int
    samples: int


class CommonPosition:
    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._even = False
        """All ranks know of each other that they stand at the same place at each step."""

    def of_save(self, own: Position, stays_even: bool, stopping: bool) -> Position:
        """The position that all ranks name their parts by. A cadence in steps needs no word."""
        if self._even or (not stopping and self._resources.cadence.steps is not None):
            return own
        return max(self.of_ranks(own, stays_even))

    def of_ranks(self, own: Position, stays_even: bool) -> list[Position]:
        """Where each rank stands; every rank must ask. `stays_even`: by how its data are dealt out it always will."""
        resources = self._resources
        told = resources.ranks.gather([list(own), stays_even])
        positions = [Position(*position) for position, _ in told]
        self._even = all(even for _, even in told) and all(one == positions[0] for one in positions)
        steps = resources.cadence.steps
        differ = [one for one in positions if one.step == own.step and one != own]
        if differ and steps is not None and resources.ranks.rank == 0:
            log.warning(
                "at step %d the ranks are in different epochs, or have counted different samples: their saves every %d "
                "steps have different names, and are not committed. Give save_every in seconds.",
                own.step,
                steps,
            )
        return positions
