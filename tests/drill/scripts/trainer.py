"""One small training, with one mistake at a time: python trainer.py MISTAKE [EPOCHS].

Without a mistake (none, none-workers, or ranks: under DDP) it resumes rightly. KILL_AFTER is the step after which it is
killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from autoresume import Run, autoresume
from autoresume.audit import note_file

MISTAKE = sys.argv[1]
STEPS_PER_EPOCH, BATCH = 6, 4
EPOCHS = int(sys.argv[2]) if len(sys.argv) > 2 else 3


class Points(Dataset):
    """Noisy points, augmented by a generator of its own, by numpy's global one, or not at all."""

    def __init__(self, count: int, own: bool = False, numpy: bool = False) -> None:
        self.inputs = torch.linspace(-1, 1, count * 4).reshape(count, 4)
        self.rng = np.random.RandomState(7) if own else None
        self.numpy = numpy

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> torch.Tensor:
        value = self.inputs[index]
        if self.rng is not None:
            value = value + float(self.rng.normal()) * 0.1
        if self.numpy:
            value = value + float(np.random.normal()) * 0.1
        return value


def model_of() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))


if "KILL_AFTER" in os.environ:
    note_file.VISIBLE_SECONDS = 0.0


def die(run: Run) -> None:
    """In its first life, where a test says so."""
    if os.environ.get("KILL_AFTER") == str(run.step_count) and not run.is_resumed:
        while not any(run.directory.glob("checkpoints/*/manifest.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


@autoresume(save_every=2)
def main(run: Run) -> None:
    run.seed(3)
    if MISTAKE == "time-shuffle":
        random.seed(time.time())
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        torch.distributed.init_process_group("gloo")
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)
    noise = torch.Generator().manual_seed(5)
    ema = model_of()
    ema.load_state_dict(model.state_dict())
    run.track(model=model)
    if MISTAKE != "optimizer":
        run.track(optimizer=optimizer)
    if MISTAKE != "scheduler":
        run.track(scheduler=scheduler)
    if MISTAKE != "generator" and (MISTAKE, run.rank) != ("generator-1", 1):
        run.track(noise=noise)
    if MISTAKE != "ema":
        run.track(ema=ema)
    run.state.setdefault("epochs", 0)
    data = Points(
        STEPS_PER_EPOCH * BATCH, own=MISTAKE == "numpy-augmentation", numpy=MISTAKE in ("workers", "none-workers")
    )
    workers = 2 if MISTAKE in ("workers", "none-workers") else 0
    if MISTAKE in ("workers", "loader-anew"):
        persist = {"persistent_workers": True} if workers else {}
        loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, **persist)
        if MISTAKE == "loader-anew":
            run.follow(loader, False)
    else:
        loader = run.loader(data, BATCH, shuffle=True, num_workers=workers)
    words = {"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta"}
    scale = 1.0
    if MISTAKE == "set-order":
        scale = 1.0 + sum(sorted(words).index(word) / 10**place for place, word in enumerate(words))
    if MISTAKE == "time-shuffle":
        scale = random.random()
    wrapped = nn.parallel.DistributedDataParallel(model) if several else model
    run.restore()
    if MISTAKE == "optimizer-rebuilt":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler.optimizer = optimizer
    if MISTAKE == "seeded-again":
        torch.manual_seed(11 + run.rank)
    best = float("inf")
    while MISTAKE == "seeded-again" and run.step_count < STEPS_PER_EPOCH * EPOCHS:
        die(run)
        batch = data.inputs[run.step_count : run.step_count + BATCH]
        loss = nn.functional.mse_loss(model(batch), batch.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.step()
    for _ in (
        range(EPOCHS * (MISTAKE != "seeded-again"))
        if MISTAKE in ("counted-twice", "seeded-again")
        else run.epochs(EPOCHS)
    ):
        if MISTAKE == "counted-twice":
            run.state.epochs += 1
        for batch in loader if MISTAKE == "loader-anew" else run.batches(loader):
            target = batch.sum(1, keepdim=True) * scale + torch.randn(len(batch), 1, generator=noise) * 0.1
            loss = nn.functional.mse_loss(wrapped(batch), target)
            if MISTAKE == "closure":
                best = min(best, float(loss.detach()))
                loss = loss * (1.0 if best > 0.5 else 0.5) + 0.0 * best
                loss = loss + best * model[0].weight.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                for slow, fast in zip(ema.parameters(), model.parameters()):
                    slow.lerp_(fast, 0.1)
                ema.eval()
                checked = nn.functional.mse_loss(ema(batch), target)
            run.log(loss=loss, ema_loss=checked, seconds=time.perf_counter())
            die(run)
            if MISTAKE == "loader-anew":
                run.step()
        if MISTAKE != "counted-twice":
            run.state.epochs += 1
    run.finish()


main()
