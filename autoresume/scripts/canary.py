"""A training that does nothing but hold state and step: python canary.py BYTES, the size of the state of all ranks.

Law: it ends three steps after its first resume, so that one preemption and its requeue are its whole life.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from autoresume import Run, autoresume

_STEP_SECONDS = 0.1


class Ballast:
    """So many bytes."""

    def __init__(self, size: int) -> None:
        self.tensor = torch.ones(max(1, size // 4))

    def state_dict(self) -> dict[str, Any]:
        return {"tensor": self.tensor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensor.copy_(state["tensor"])


@autoresume(save_every="1000000000 steps")
def main(run: Run) -> None:
    run.seed(0)
    run.track(ballast=Ballast(int(sys.argv[1]) // run.world_size))
    run.restore()
    began = run.step_count
    for step in run.steps(10**9):
        time.sleep(_STEP_SECONDS)
        if run.is_resumed and step >= began + 3:
            break


if __name__ == "__main__":
    main()  # type: ignore[call-arg]  # the decorator hands the run in
