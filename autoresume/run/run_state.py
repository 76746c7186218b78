"""The run's own state: counters, positions, generators; what a checkpoint holds under the name `run`.

Law: read at a boundary; never loaded as a whole (life.py says in which order what is in it comes back).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autoresume.ranks.reduction import ReductionOrder
from autoresume.run.generators import Generators
from autoresume.run.positions import Positions
from autoresume.state import rng


class RunState:
    """`counters` gives step, epoch and samples, `reductions` the orders in which DDP adds up, by its modules' names."""

    def __init__(
        self,
        counters: Callable[[], dict[str, int]],
        positions: Positions,
        generators: Generators,
        reductions: Callable[[], Mapping[str, ReductionOrder]],
    ) -> None:
        self._counters, self._positions = counters, positions
        self._generators, self._reductions = generators, reductions

    def state_dict(self) -> dict[str, Any]:
        orders = {name: one.order for name, one in self._reductions().items() if one.order is not None}
        return {
            **self._counters(),
            "data_seed": self._positions.data_seed,
            "began": self._generators.began,
            "draws_first": self._generators.draws_first,
            "reductions": orders,
            **self._positions.state(),
            "rng": rng.get_rng_state(),
        }
