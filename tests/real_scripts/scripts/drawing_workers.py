"""Data workers in which something random happens, or not. Argument: "drawing", "still", or "own"."""

import sys

import numpy as np
import torch
from parts import Model, Numbers, train_step
from torch.utils.data import DataLoader

from autoresume import Run, autoresume


class Own(Numbers):
    def __init__(self) -> None:
        super().__init__(augment=False)
        self.random = np.random.default_rng(3)

    def __getitem__(self, index: int) -> torch.Tensor:
        return super().__getitem__(index) * float(self.random.random())


@autoresume
def main(run: Run) -> None:
    kind = sys.argv[1]
    run.seed(3)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run.track(model=model, optimizer=optimizer)
    data = Own() if kind == "own" else Numbers(augment=kind == "drawing")
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=1, persistent_workers=kind != "own")
    for _ in run.epochs(2):
        for x in loader:
            train_step(model, optimizer, x)
            run.step()


main()
