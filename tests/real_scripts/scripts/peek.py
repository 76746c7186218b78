"""Iterators that are made and dropped: a look at the first batch, an evaluation that stops early, a preview.

Arguments: what is done ("peek", "early", "preview"), kind of loader ("run" or "plain").
"""

import sys

import nasty
from parts import Model, Numbers, train_step
from torch.utils.data import DataLoader

from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    what, kind = sys.argv[1:]
    run.seed(3)
    model = Model()
    optimizer = plain_sgd(model)
    make = run.loader if kind == "run" else DataLoader
    train, test = make(Numbers(), batch_size=4, shuffle=True), make(Numbers(10, augment=False), batch_size=3)
    run.track(model=model, optimizer=optimizer)
    seen = 0.0
    for _ in run.epochs(3):
        if what == "peek":
            assert len(next(iter(train))[0]) == 4
        for x in run.batches(train):
            run.log(loss=train_step(model, optimizer, x), first=x[0, 0].item())
            if what == "early" and run.step_count % 2:
                for count, y in enumerate(test):
                    run.log(**{f"test{count}": y[0, 0].item()})
                    if count == 1:
                        break
            if what == "preview" and run.step_count % 2:
                run.log(preview=next(iter(test))[0, 0].item())
            nasty.place(run.step_count + 1)
    nasty.finish(model=model, optimizer=optimizer, samples=run.samples, seen=seen)


def plain_sgd(model):
    import torch

    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


main()
