"""SIGTERM reaches the whole process group, data workers too. Argument: whose loader has the workers:
"run" (run.loader), "batches" (a DataLoader under run.batches), "held" (one under run.batches whose workers persist, and
which is never given up); or one that nobody gave to the run: "other", "before" (made before the run was opened),
"stateful" (torchdata's)."""

import sys

import nasty
import torch
from parts import Model, Numbers, train_step
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from autoresume import Run, autoresume

held = []
before = DataLoader(Numbers(40, augment=False), batch_size=1, num_workers=2)


@autoresume
def main(run: Run) -> None:
    kind = sys.argv[1]
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    data = Numbers(40, augment=False)
    if kind == "run":
        loader = run.loader(data, batch_size=4, num_workers=2)
    elif kind == "held":
        loader = DataLoader(data, batch_size=4, num_workers=2, persistent_workers=True)
        held.append(loader)
    else:
        loader = DataLoader(data, batch_size=4, num_workers=2 if kind == "batches" else 0)
    others = {"other": DataLoader, "stateful": StatefulDataLoader}
    made = before if kind == "before" else others[kind](data, batch_size=1, num_workers=2) if kind in others else None
    other = iter(made) if made is not None else None
    for x in run.batches(loader, epochs=1):
        run.log(loss=train_step(model, optimizer, x))
        nasty.place(run.step_count + 1)
        if other is not None and run.step_count < 8:
            next(other)
    nasty.finish(model=model)


main()
