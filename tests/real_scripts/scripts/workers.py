"""SIGTERM reaches the whole process group, data workers too. Argument: whose loader has the workers:
"run" (run.loader), "batches" (a DataLoader under run.batches), "held" (one under run.batches whose workers persist, and
which is never given up), "stream" (run.loader over an iterable dataset); or one that nobody gave to the run: "other",
"before" (made before the run was opened), "stateful" (torchdata's, which is imported while the run is open)."""

import sys

import nasty
import torch
from parts import Model, Numbers, train_step
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from autoresume import Run, autoresume

for name in [name for name in sys.modules if name.partition(".")[0] == "torchdata"]:
    del sys.modules[name]  # a process that imports for others may have it
held = []
before = DataLoader(Numbers(40, augment=False), batch_size=1, num_workers=2)


class Stream(IterableDataset):
    def __iter__(self):
        worker = get_worker_info()
        first, count = (worker.id, worker.num_workers) if worker else (0, 1)
        return (float(number) + torch.arange(4) / 4 for number in range(first, 40, count))


def others(kind, data):
    if kind == "stateful":
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(data, batch_size=1, num_workers=2)
    return DataLoader(data, batch_size=1, num_workers=2) if kind == "other" else before if kind == "before" else None


@autoresume
def main(run: Run) -> None:
    kind = sys.argv[1]
    run.seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    data = Numbers(40, augment=False)
    if kind in ("run", "stream"):
        loader = run.loader(Stream() if kind == "stream" else data, batch_size=4, num_workers=2)
    elif kind == "held":
        loader = DataLoader(data, batch_size=4, num_workers=2, persistent_workers=True)
        held.append(loader)
    else:
        loader = DataLoader(data, batch_size=4, num_workers=2 if kind == "batches" else 0)
    made = others(kind, data)
    other = iter(made) if made is not None else None
    for x in run.batches(loader, epochs=1):
        run.log(loss=train_step(model, optimizer, x))
        nasty.place(run.step_count + 1)
        if other is not None and run.step_count < 8:
            next(other)
    nasty.finish(model=model)


main()
