"""Periodic saves of a training on a GPU, and its resume: `python -m benchmarks.gpu` where there is one.

Law: the loop is what a user writes, in mixed precision on batches that keep the GPU busy. It is timed in windows of as
many steps, at whose ends the device is waited for; in every other window there is a save. What the windows with a save
take longer is what a save costs a training, whatever hides it. Rivals alternate, each in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import limits, peers, states
from benchmarks.loop import Autoresume, Other
from benchmarks.measure import Group, Recorder, drop_caches

_WINDOW = 40
"""Steps: long enough for a checkpoint to become durable."""
_FIRST = 2 * _WINDOW - 10
"""Steps before the first window, so that each save lies ten steps behind a window's beginning, where the host has run
ahead of the device as usual."""
_BATCH, _TOKENS = 8, 1024
_SAVERS = ["autoresume", "dcp.async_save", "torch.save"]
_LOADERS = ["autoresume", "torch.load(mmap)", "dcp.save"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", default="125M", choices=list(states.TRANSFORMERS))
    parser.add_argument("--only", default="save,load", help="one of both")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="", help="what a process is that this one starts")
    parser.add_argument("--rival", default="")
    given = parser.parse_args()
    if given.part:
        globals()[f"_{given.part}"](given)
        return
    given.out.unlink(missing_ok=True)
    for number in range(given.rounds):
        for rival in _SAVERS if "save" in given.only else ():
            _process(given, "save", rival)
        for rival in _LOADERS if "load" in given.only else ():
            if number == 0:
                _process(given, "prepare", rival)
            _process(given, "load", rival)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {given.state}")
    for line in table(given.out):
        print(line)


def _process(given: argparse.Namespace, part: str, rival: str) -> None:
    disk = given.disk / f"{'save' if part == 'save' else 'load'}-{rival}"
    disk.mkdir(parents=True, exist_ok=True)
    words = ["--state", given.state, "--saves", str(given.saves), "--disk", str(disk), "--out", str(given.out)]
    command = [sys.executable, "-m", "benchmarks.gpu", *words, "--part", part, "--rival", rival]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{part} {rival}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", flush=True)
    if part == "save":
        shutil.rmtree(disk)


def _save(given: argparse.Namespace) -> None:
    group = Group()
    state = states.build(given.state, "cuda")
    record = Recorder(str(given.out), "gpu", given.state, 1, given.rival)
    ours = given.rival == "autoresume"
    every = 2 * _WINDOW
    saver: Any = Autoresume(given, state, state.model, every) if ours else Other(given, state, group, every)
    words = torch.cat([state.batch(number, _TOKENS) for number in range(_BATCH)]).cuda()
    record.add("bytes", "B", state.bytes)
    record.add("copy", "s", _copy(state.bytes), rival="limit")
    record.add("raw write", "s", limits.write(given.disk, state.bytes), rival="limit")
    saved: dict[int, float] = {}
    rows: list[tuple[float, float]] = []
    began, stood = 0.0, 0.0
    for step in range(1, _FIRST + 2 * given.saves * _WINDOW + 1):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = state.model(words)
        loss.backward()
        at = time.perf_counter()
        saver.before_optimizer()
        state.optimizer.step()
        stood += state.optimizer.entered - at  # autoresume waits in a hook of the optimizer
        state.optimizer.zero_grad()
        if ours:
            saver.log(loss)
        at = time.perf_counter()
        saver.boundary(step)
        stood += time.perf_counter() - at
        if step % every == 0:
            saved[step] = time.time()
        if step >= _FIRST and (step - _FIRST) % _WINDOW == 0:
            torch.cuda.synchronize()
            now = time.perf_counter()
            rows.append((now - began, stood))
            began, stood = now, 0.0
    saver.end()
    with_save, without = rows[1::2], rows[2::2]
    usual, waits = (statistics.median(row[index] for row in without) for index in (0, 1))
    record.add("step", "s", usual / _WINDOW)
    record.add("lost", "s", [row[0] - usual for row in with_save])
    record.add("host", "s", [row[1] - waits for row in with_save])
    found = saver.committed()
    record.add("durable", "s", [found[one] - at for one, at in list(saved.items())[1:] if one in found])
    group.close()


def _copy(count: int) -> list[float]:
    """Seconds of one plain copy of as many bytes from the GPU into pinned memory."""
    source = torch.ones(count, dtype=torch.uint8, device="cuda")
    target = torch.empty(count, dtype=torch.uint8, pin_memory=True)
    taken = []
    for _ in range(4):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return taken[1:]


def _prepare(given: argparse.Namespace) -> None:
    peers.make(given.rival, given.disk / "checkpoints", states.build(given.state, "cuda"), Group()).prepare(1)


def _load(given: argparse.Namespace) -> None:
    state = states.build(given.state, "cuda")
    rival = peers.make(given.rival, given.disk / "checkpoints", state, Group())
    record = Recorder(str(given.out), "gpu", given.state, 1, given.rival)
    for figure in ("cold restore", "warm restore"):
        if figure == "cold restore":
            drop_caches(given.disk)
        torch.cuda.synchronize()
        began = time.perf_counter()
        rival.load(1)
        torch.cuda.synchronize()
        record.add(figure, "s", time.perf_counter() - began)
        rival.unload()
    rival.close()


def table(out: Path) -> list[str]:
    """Medians, a line a figure."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for line in out.read_text().splitlines():
        one = json.loads(line)
        found.setdefault((one["figure"], one["rival"], one["unit"]), []).extend(one["samples"])
    return [
        f"{figure:14} {rival:18} {statistics.median(samples):12.5g} {unit}  ({min(samples):.5g} to {max(samples):.5g})"
        for (figure, rival, unit), samples in sorted(found.items())
    ]


if __name__ == "__main__":
    main()
