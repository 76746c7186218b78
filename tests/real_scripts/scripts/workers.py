"""SIGTERM reaches the whole process group, data workers too. Argument: whose loader has the workers:
"run" (run.loader), "batches" (a DataLoader under run.batches), "other" (one that autoresume never sees), "held" (one
under run.batches whose workers persist, and which is never given up)."""

import sys

import nasty
import torch
from parts import Model, Numbers, train_step
from torch.utils.data import DataLoader

from autoresume import Run, autoresume

held = []


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
    other = iter(DataLoader(data, batch_size=1, num_workers=2)) if kind == "other" else None
    for x in run.batches(loader, epochs=1):
        run.log(loss=train_step(model, optimizer, x))
        nasty.place(run.step_count + 1)
        if other is not None and run.step_count < 8:
            next(other)
    nasty.finish(model=model)


main()
