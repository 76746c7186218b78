"""Epochs, each with an evaluation after it: the ordinary script. Arguments: kind of loader, workers."""

import sys

import nasty
import numpy as np
import torch
from parts import Model, Numbers, evaluate, train_step
from torch.utils.data import DataLoader, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from autoresume import Run, autoresume


class Wrapped:
    """As frameworks wrap a loader: it has a generator of its own, and can't seek."""

    def __init__(self, loader: DataLoader) -> None:
        self.base = loader

    def __iter__(self):
        for batch in self.base:
            yield batch.double().float()


class Drawn(torch.utils.data.Sampler):
    """A sampler with numpy's generator."""

    def __init__(self, data) -> None:
        self.data, self.random = data, np.random.default_rng(8)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self):
        return iter(self.random.permutation(len(self.data)).tolist())


def loaders(run: Run, kind: str, workers: int):
    persistent = {"persistent_workers": True} if kind.endswith("persistent") else {}
    options = {"num_workers": workers, "batch_size": 4, **persistent}
    if kind.startswith("run"):
        return run.loader(Numbers(), shuffle=True, **options), run.loader(Numbers(7), **options)
    plain = Numbers(augment=not persistent)  # in workers that persist it is warned about, not repeated
    test = DataLoader(Numbers(7, augment=False), batch_size=4, num_workers=workers)
    if kind.startswith("shuffled"):  # a RandomSampler draws from the global generator
        return DataLoader(plain, shuffle=True, **options), test
    if kind == "torchdata":  # another order than DataLoader's, but an order
        return StatefulDataLoader(plain, shuffle=True, **options), test
    if kind == "generator":
        return DataLoader(plain, shuffle=True, generator=torch.Generator().manual_seed(5), **options), test
    if kind == "wrapped":
        generator = torch.Generator().manual_seed(5)
        return Wrapped(DataLoader(plain, shuffle=True, generator=generator, **options)), test
    if kind == "numpy":
        return DataLoader(plain, sampler=Drawn(plain), **options), test
    if kind == "sampler":
        return DataLoader(plain, sampler=DistributedSampler(plain, 2, 1), **options), test
    if kind == "batch_sampler":
        sampler = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(plain), 4, drop_last=True)
        return DataLoader(plain, batch_sampler=sampler, num_workers=workers), test
    raise SystemExit(f"no kind {kind}")


@autoresume
def main(run: Run) -> None:
    kind, workers = sys.argv[1], int(sys.argv[2])
    run.seed(3)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    train, test = loaders(run, kind, workers)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.epochs(3):
        for x in run.batches(train):
            run.log(loss=train_step(model, optimizer, x), first=x[0, 0].item(), epoch=run.epoch)
            scheduler.step()
            nasty.place(run.step_count + 1)
        nasty.place(run.step_count, "before evaluation")
        run.log(test=evaluate(model, test), draw=torch.rand(()).item(), tested=epoch)
        nasty.place(run.step_count, "after evaluation")
    nasty.finish(model=model, optimizer=optimizer, scheduler=scheduler, samples=run.samples, steps=run.step_count)


main()
