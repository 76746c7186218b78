"""Loaders that are made anew for each epoch, in a function that the loop can't see into; and ones that are not.

Argument: "run", "foreign" or "iterable" (one loader for each epoch), "splits" (two, made at the same place), "broken" (each
is left after two batches), "counter" (in a loop that only the script knows), "pair", "foreign-pair", "own-pair" (two
that are made once and trained on in turn in each epoch), "choice" (another one of two in each epoch), "named" (each has
a name of its own), "kept" (the script keeps the first one).
"""

import sys

import nasty
import torch
from parts import Model, Numbers, train_step
from torch.utils.data import DataLoader

from autoresume import Run, autoresume

KIND = sys.argv[1]
kept = []


def loader_of(run: Run, epoch: int, split: str = "train"):
    data = Numbers(14 if split == "train" else 7)
    if KIND in ("foreign", "kept"):
        made = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(epoch))
        kept.append(made) if KIND == "kept" and epoch == 0 else None
        return made
    if KIND == "iterable":
        generator = torch.Generator().manual_seed(epoch)
        return (torch.randn(4, 4, generator=generator) for _ in range(4))  # nothing but an iterable
    return run.loader(data, batch_size=4, shuffle=True, name=f"epoch {epoch}" if KIND == "named" else None)


def pair(run: Run):
    if KIND in ("foreign-pair", "choice"):
        generators = [torch.Generator().manual_seed(number) for number in range(2)]
        return [DataLoader(Numbers(n), 4, shuffle=True, generator=g) for n, g in zip((10, 7), generators)]
    return [run.loader(Numbers(10), batch_size=4, shuffle=True), run.loader(Numbers(7), batch_size=4, shuffle=True)]


@autoresume
def main(run: Run) -> None:
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run.track(model=model, optimizer=optimizer)

    def train(batches, **where) -> None:
        for x in batches:
            if KIND == "broken" and run.step_count >= 2 * (where["epoch"] + 1):
                break
            run.log(loss=train_step(model, optimizer, x), first=x[0, 0].item(), **where)
            nasty.place(run.step_count + 1)
            if KIND == "own-pair":
                run.step()

    two = pair(run) if KIND.endswith("pair") or KIND == "choice" else []
    if KIND == "counter":
        data = Numbers()
        run.state.epoch = 0
        run.restore()
        while run.state.epoch < 3:
            train(run.batches(run.loader(data, batch_size=4, shuffle=True)), epoch=run.state.epoch)
            run.state.epoch += 1
    else:
        for epoch in run.epochs(3):
            if KIND == "choice":
                train(run.batches(two[epoch % 2]), epoch=epoch)
            elif two:
                for number, loader in enumerate(two):
                    train(loader if KIND == "own-pair" else run.batches(loader), epoch=epoch, number=number)
            elif KIND == "splits":
                for split in ("train", "more"):
                    train(run.batches(loader_of(run, epoch, split)), epoch=epoch, split=split)
            else:
                train(run.batches(loader_of(run, epoch)), epoch=epoch)
    nasty.finish(model=model, optimizer=optimizer, steps=run.step_count, samples=run.samples)


main()
