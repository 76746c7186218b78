"""Ranks that the environment does not know, as mp.spawn and MPI make them. Argument: when the process group comes to be:
"before" the run is opened, "between" (before the loader), "after" the loader; or "seed" (after a run with that option)."""

import os
import sys

import nasty
import torch
import torch.distributed as dist
from parts import Model, Numbers, train_step
from torch.nn.parallel import DistributedDataParallel as DDP

import autoresume

rank, world_size = int(os.environ.pop("RANK")), int(os.environ.pop("WORLD_SIZE"))
del os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]
WHEN = sys.argv[1]


def join(when: str) -> None:
    if when == WHEN:
        dist.init_process_group("gloo", rank=rank, world_size=world_size)


join("before")
run = autoresume.start(seed=5 if WHEN == "seed" else None)
join("between")
join("seed")
run.seed(3)
loader = run.loader(Numbers(16), batch_size=4, shuffle=True)
join("after")
model = DDP(Model())
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
run.track(model=model, optimizer=optimizer)
seen = []
for x in run.batches(loader, epochs=2):
    seen.append(nasty.digest(x))
    run.log(loss=train_step(model, optimizer, x))
    nasty.place(run.step_count + 1)
nasty.finish(model=model.module)
run.finish()
if not os.environ.get("NASTY"):
    print("batches", *seen, flush=True)
dist.destroy_process_group()
