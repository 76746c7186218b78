"""A training that does to its own disk what FAULTS says, and when: "life:step:what life:step:what ...".

What: fill, empty, shut_down, read_only, limit=SIZE, no_limit (see disks.py), or a signal: TERM for the process that
the user started, KILL for this one. Before each the saves that were begun are awaited, on every rank, so that
nothing depends on how fast the disk is. After TERM steps take as long as real ones, so that some are left.
"""

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import TensorDataset

from autoresume import Run, autoresume

sys.path.insert(0, str(Path(__file__).parent))
import disks

SLOW: list[bool] = []


def await_saves(run: Run) -> None:
    saver = run.life.saves.saver
    saver.finish_handover()
    while not saver.sink.idle():
        time.sleep(0.002)
    if run.world_size > 1:
        torch.distributed.barrier()


def provoke(run: Run) -> None:
    for event in os.environ.get("FAULTS", "").split():
        life, step, what = event.split(":")
        if (int(life), int(step)) != (run.incarnation, run.step_count):
            continue
        await_saves(run)
        if run.rank == 0:
            act(what)
        SLOW.append(what == "TERM")
        if run.world_size > 1:
            torch.distributed.barrier()


def act(what: str) -> None:
    word, _, argument = what.partition("=")
    if word == "TERM":
        ours = [p for p in psutil.Process().parents() if p.cmdline()[2:4] == ["autoresume", "run"]]
        os.kill(ours[0].pid if ours else os.getpid(), signal.SIGTERM)
    elif word == "KILL":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        getattr(disks, word)(Path(os.environ["DISK"]), *([argument] if argument else []))


@autoresume(save_every="5 steps", backend="gloo", keep=2, unchanged="write")  # each checkpoint needs its room
def main(run: Run) -> None:
    run.seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1))
    model.register_buffer("ballast", torch.arange(1_500_000.0))  # enough for direct writing
    model = DDP(model) if run.world_size > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    loader = run.loader(TensorDataset(torch.randn(160, 4)), batch_size=8 // run.world_size, shuffle=True)
    run.track(model=model, optimizer=optimizer)
    for (x,) in run.batches(loader, epochs=2):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss, note="x" * 200)
        provoke(run)
        time.sleep(0.05 * any(SLOW))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
