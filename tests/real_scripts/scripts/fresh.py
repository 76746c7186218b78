"""A loader that is made anew for each epoch, in a function that the loop can't see into. Argument: kind."""

import sys

import nasty
import torch
from parts import Model, Numbers, train_step
from torch.utils.data import DataLoader

from autoresume import Run, autoresume


def loader_of(run: Run, kind: str, epoch: int):
    if kind == "run":
        return run.loader(Numbers(), batch_size=4, shuffle=True)
    if kind == "foreign":
        return DataLoader(Numbers(), batch_size=4, shuffle=True)
    generator = torch.Generator().manual_seed(epoch)
    return (torch.randn(4, 4, generator=generator) for _ in range(4))  # nothing but an iterable


@autoresume
def main(run: Run) -> None:
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    for epoch in run.epochs(3):
        for x in run.batches(loader_of(run, sys.argv[1], epoch)):
            run.log(loss=train_step(model, optimizer, x), first=x[0, 0].item(), epoch=epoch)
            nasty.place(run.step_count + 1)
    nasty.finish(model=model, optimizer=optimizer, steps=run.step_count)


main()
