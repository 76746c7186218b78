"""A DDP training with everything random in it. EVENTS says which signal is sent where, and when.

EVENTS is a list of incarnation:step:rank:signal:target, for example "1:12:1:KILL:self 2:20:0:TERM:parent".
Targets are self, parent (torchrun, or the launcher) and daemon.

DAMAGE says what of the last life's snapshots is overwritten before ranks that torchrun starts again read it: "shards"
on the disk, or "arenas" in memory.

FROZEN, if it is set, tracks a frozen encoder, too.

COMMITTED says which step's checkpoint has to be committed before a signal is sent.
"""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import Dataset

from autoresume import Run, autoresume

sent: list[str] = []


class Points(Dataset):
    def __len__(self) -> int:
        return 95  # divisible by no batch: the borders of epochs are part of the test

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = random.random() + float(np.random.rand()) + torch.rand(6)
        return noise + index / 95, torch.tensor(index % 3)


def target(word: str) -> int:
    if word == "self":
        return os.getpid()
    if word == "parent":
        return os.getppid()
    return next(p.pid for p in psutil.Process().parents() if p.cmdline()[2:4] == ["autoresume", "node"])


def provoke(run: Run) -> None:
    """Each event once, at its step or, if this life began later, at its first one; slowly from then on, so that the
    training does not end before it is stopped."""
    for event in os.environ.get("EVENTS", "").split():
        life, step, rank, name, where = event.split(":")
        if (int(life), int(rank)) == (run.incarnation, run.rank) and run.step_count >= int(step):
            if event not in sent:
                sent.append(event)
                await_commit()
                os.kill(target(where), signal.Signals[f"SIG{name}"])
            time.sleep(0.05)


def await_commit() -> None:
    if step := os.environ.get("COMMITTED"):
        while not list(Path(os.environ["AUTORESUME_RUN_DIR"]).glob(f"checkpoints/*_U{step}_*/manifest.json")):
            time.sleep(0.01)


def damage() -> None:
    memory = Path(os.environ["AUTORESUME_NODE_FOLDER"])
    while list(memory.glob("sealed-*")):
        time.sleep(0.01)
    shards = Path(os.environ["AUTORESUME_RUN_DIR"]).glob("checkpoints/*/shards/*")
    found = list(shards if os.environ["DAMAGE"] == "shards" else memory.glob("arena-*"))
    assert found
    for path in found:
        with open(path, "r+b") as file:
            file.write(os.urandom(path.stat().st_size))


@autoresume(save_every="7 steps", backend="gloo", keep=2)
def main(run: Run) -> None:
    run.seed(5)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 3))
    model = DDP(model) if run.world_size > 1 else model
    run.seed(5 + run.rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.9)
    loader = run.loader(
        Points(), batch_size=8 // run.world_size, shuffle=True, num_workers=int(os.environ.get("WORKERS", "0"))
    )
    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    encoder = nn.Linear(6, 40_000).requires_grad_(False)
    if os.environ.get("FROZEN"):
        run.track(encoder=encoder)
    run.state.seen = 0.0
    for x, y in run.batches(loader, epochs=4):
        loss = nn.functional.cross_entropy(model(x * (1 + 0.1 * random.random()) + float(np.random.rand())), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.state.seen += float(x.sum())
        run.log(loss=loss, seen=run.state.seen)
        provoke(run)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ.get("DAMAGE") and os.environ["TORCHELASTIC_RESTART_COUNT"] == "1" and os.environ["RANK"] == "0":
        damage()
    main()
