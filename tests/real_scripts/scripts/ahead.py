"""Batches fetched ahead: a prefetcher holds the next batch at each step boundary. Arguments: dataset, workers, loop, how
many batches."""

import sys
from collections import deque

import nasty
import torch
from parts import Model, Numbers, train_step
from stream import Stream

from autoresume import Run, autoresume


def prefetched(batches, ahead):
    """As timm, apex and others do it: the next batches are fetched while this one is trained on."""
    held = deque()
    for following in batches:
        held.append(following)
        if len(held) > ahead:
            yield held.popleft()
    while held:
        yield held.popleft()


def while_it_lasts(run: Run):
    while run.step_count < 12:
        yield -1


def endless(loader):
    while True:
        yield from loader


@autoresume
def main(run: Run) -> None:
    kind, workers, loop, ahead = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    if kind == "map":
        loader = run.loader(Numbers(), batch_size=4, shuffle=True, fetched_ahead=ahead, num_workers=workers)
    else:
        loader = run.loader(Stream(), batch_size=4, fetched_ahead=ahead, num_workers=workers)
    run.restore()
    if loop == "endless":  # across epochs
        batches = prefetched(endless(loader), ahead)
        while run.step_count < 12:
            x = next(batches)
            run.log(loss=train_step(model, optimizer, x), first=x[0, 0].item())
            nasty.place(run.step_count + 1)
            run.step()
    for epoch in run.epochs(3) if loop == "epochs" else while_it_lasts(run):
        for x in prefetched(loader, ahead):
            run.log(loss=train_step(model, optimizer, x), first=x[0, 0].item(), epoch=epoch)
            nasty.place(run.step_count + 1)
            run.step()
    nasty.finish(model=model, optimizer=optimizer, samples=run.samples, steps=run.step_count)
    print("samples", run.samples)


main()
