"""torch's ZeroRedundancyOptimizer: each rank's share of the state, and the options that all of them have.

Law: each rank stores what it steps with, and nothing is gathered. Before each step ZeroRedundancyOptimizer sets the
options of its own optimizer from its groups: both are restored.
"""

from __future__ import annotations

import sys
from typing import Any

from autoresume.errors import UsageError


class RankOptimizer:
    """state_dict for one rank's share."""

    def __init__(self, name: str, optimizer: Any) -> None:
        if getattr(optimizer, "_overlap_with_ddp", False):
            raise UsageError(
                f"run.track({name}=...): a ZeroRedundancyOptimizer with overlap_with_ddp=True makes its state after "
                "the first steps, too late to restore it. Make it with overlap_with_ddp=False"
            )
        self.optimizer = optimizer

    @staticmethod
    def takes(value: Any) -> bool:
        module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
        return module is not None and isinstance(value, module.ZeroRedundancyOptimizer)

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def state_dict(self) -> dict[str, Any]:
        options = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        return {"ranks": self.optimizer.world_size, "share": self.optimizer.optim.state_dict(), "options": options}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["ranks"] != self.optimizer.world_size:
            raise ValueError(
                f"it was shared by {state['ranks']} ranks, and is by {self.optimizer.world_size} now; its shares can't "
                "be dealt out anew. Go on with as many ranks, or let it begin anew with restore.fresh"
            )
        self.optimizer.optim.load_state_dict(state["share"])
        for group, options in zip(self.optimizer.param_groups, state["options"]):
            group.update(options)
