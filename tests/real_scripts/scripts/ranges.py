"""Ranges in each other and after each other, none of which has a name, around passes through a small data set."""

import nasty
import torch
from parts import Model, Numbers, train_step

from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(Numbers(8), batch_size=4, shuffle=True)
    other = run.loader(Numbers(4), batch_size=4, shuffle=True)

    def train(loader, **where: int) -> None:
        for x in run.batches(loader):
            run.log(loss=train_step(model, optimizer, x), first=x[0, 0].item(), **where)
            nasty.place(run.step_count + 1)

    for cycle in run.range(2):
        if cycle == 0:
            for warm in run.range(2, 6, 2):
                train(other, cycle=cycle, warm=warm)
        for phase in run.range(2):
            for part in run.range(2):
                train(other, cycle=cycle, phase=phase, part=part)
            train(loader, cycle=cycle, phase=phase)
        for last in run.range(9):
            if last == 2:
                break
            train(other, cycle=cycle, last=last)
    for tail in run.range(2):
        train(loader, tail=tail)
    nasty.finish(model=model, optimizer=optimizer, steps=run.step_count, samples=run.samples)


main()
