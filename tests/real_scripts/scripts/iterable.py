"""Datasets without places. Arguments: kind ("stateful", "peek", "own-peek": in a loop of one's own, "foreign",
"list", "plain": run.loader over one without state, "evaluated": only evaluated on), workers."""

import sys

import nasty
import torch
from parts import Model, train_step
from stream import Stream
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from autoresume import Run, autoresume


class Endless(IterableDataset):
    """No state, and noise from torch's global generator."""

    def __iter__(self):
        for number in range(14):
            yield torch.rand(4) + number


class Rows(IterableDataset):
    """No state, always the same; its workers share it."""

    def __iter__(self):
        worker = get_worker_info()
        first, each = (worker.id, worker.num_workers) if worker else (0, 1)
        return (torch.arange(4) / 4 + number for number in range(first, 30, each))


class Fixed(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(14.0))


@autoresume
def main(run: Run) -> None:
    kind, workers = sys.argv[1], int(sys.argv[2])
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    fixed = run.loader(Fixed(), batch_size=4)
    if kind in ("stateful", "peek", "own-peek"):
        loader = run.loader(Stream(), batch_size=4, num_workers=workers)
    elif kind == "plain":
        loader = run.loader(Rows(), batch_size=4, num_workers=workers)
    elif kind == "foreign":
        loader = DataLoader(Endless(), batch_size=4, num_workers=workers)
    else:
        loader = [torch.full((4, 4), float(number)) + torch.arange(4.0)[:, None] for number in range(4)]
    for epoch in run.epochs(3):
        if kind.endswith("peek"):
            assert next(iter(loader)).shape[1] == 4
        for x in loader if kind == "own-peek" else run.batches(loader):
            if len(x) < 2:
                continue
            run.log(loss=train_step(model, optimizer, x), first=x[0, 0].item(), epoch=epoch)
            nasty.place(run.step_count + 1)
            if kind == "own-peek":
                run.step()
            if kind == "evaluated":
                run.log(seen=sum(len(batch) for batch in fixed))
    nasty.finish(model=model, optimizer=optimizer, steps=run.step_count)


main()
