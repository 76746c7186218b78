"""Two ranks with uneven inputs and nothing in common: rank 0 has two batches in an epoch, and leaves its loop long
before rank 1, which has four. Argument: epochs. With WAIT, rank 1 waits for that in its eighth step, which only the
node daemon allows: without it the ranks tell each other every few steps."""

import os
import sys
import time
from pathlib import Path

import nasty
import torch
from parts import Model, Numbers, train_step
from torch.utils.data import DataLoader

from autoresume import Run, autoresume

RANK = int(os.environ.get("RANK", "0"))
LEFT = Path("left")


@autoresume(backend="gloo")
def main(run: Run) -> None:
    run.seed(3 + RANK)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    loader = DataLoader(Numbers(8 if RANK == 0 else 16), batch_size=4, shuffle=True)
    run.state.seen = []
    for x in run.batches(loader, epochs=int(sys.argv[1])):
        loss = train_step(model, optimizer, x)
        run.log(loss=loss)
        run.state.seen.append(loss)
        while "WAIT" in os.environ and RANK == 1 and run.step_count == 7 and not LEFT.exists():
            time.sleep(0.001)
        nasty.place(run.step_count + 1)
    if RANK == 0:
        LEFT.touch()
    nasty.finish(model=model, optimizer=optimizer, seen=run.state.seen, steps=run.step_count, epoch=run.epoch)


main()
