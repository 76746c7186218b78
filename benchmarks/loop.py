"""What periodic saves cost a real training loop: `python -m benchmarks.loop` starts one, and is one.

Law: the loop is what a user writes. It stands still inside the call that saves and inside what waits, before
the optimizer's step, for a copy that is still running; both count. What the same steps take without a save is
subtracted. Each save is compared with a plain copy of as many bytes, made just before it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks import limits, peers, states
from benchmarks.measure import Group, Recorder, sync_tree

_BETWEEN = 5
"""Steps from one save to the next: enough for it to become durable, and to see steps without one."""
_TOKENS = 64


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", required=True, choices=list(states.TRANSFORMERS))
    parser.add_argument("--rival", required=True)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--daemon", action="store_true")
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--train", action="store_true", help="be a rank")
    return parser.parse_args()


def main() -> None:
    given = parse()
    if given.train:
        train(given)
        return
    command = launch(["-m", "benchmarks.loop", *sys.argv[1:], "--train"], given.world, given.daemon)
    sys.exit(subprocess.run(command).returncode)


def launch(script: list[str], world: int, daemon: bool) -> list[str]:
    """The command that starts ranks: torchrun for several, the node daemon above them if that is wanted."""
    words = [sys.executable, *script]
    if world > 1:
        elastic = ["--nnodes=1", f"--nproc-per-node={world}", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        words = [sys.executable, "-m", "torch.distributed.run", *elastic, *script]
    if daemon:
        words = [sys.executable, "-m", "autoresume", "node", "--nodes", "1", "--ranks", str(world), "--", *words]
    return words


class Autoresume:
    """The public way: a run, tracked objects, and a boundary after each step."""

    def __init__(
        self, given: argparse.Namespace, state: states.State, model: torch.nn.Module, every: int = _BETWEEN
    ) -> None:
        import autoresume

        self._folder = given.disk / "run"
        self._run = autoresume.start(run_dir=str(self._folder), save_every=every, keep=1000)
        self._run.track(model=model, optimizer=state.optimizer)
        self._run.restore()

    def log(self, loss: torch.Tensor) -> None:
        self._run.log(loss=loss)

    def boundary(self, step: int) -> None:
        self._run.step()

    def before_optimizer(self) -> None:
        """Its own hook waits."""

    def committed(self) -> dict[int, float]:
        """step -> wall time of its commit."""
        return commits(self._folder)

    def end(self) -> None:
        self._run.finish()


class Other:
    """Another library, called after each so many steps."""

    def __init__(self, given: argparse.Namespace, state: states.State, group: Group, every: int = _BETWEEN) -> None:
        self._every = every
        self._rival = peers.make(given.rival, given.disk / "checkpoints", state, group)
        self._group = group
        self._committed: dict[int, float] = {}
        self._waiting: int | None = None

    def boundary(self, step: int) -> None:
        if step % self._every == 0:
            self._settle()
            self._rival.save(step)
            self._waiting = step

    def before_optimizer(self) -> None:
        self._rival.join()

    def _settle(self) -> None:
        """Nothing of the last save may be left; it isn't, where steps between saves outlast it."""
        if self._waiting is not None:
            self._rival.wait()
            if self._group.rank == 0:
                sync_tree(self._rival.place(self._waiting))
                shutil.rmtree(self._rival.place(self._waiting), ignore_errors=True)
            self._waiting = None

    def committed(self) -> dict[int, float]:
        return self._committed

    def end(self) -> None:
        self._settle()
        self._rival.close()


def commits(run_folder: Path) -> dict[int, float]:
    """Of a run of autoresume: step -> wall time at which its checkpoint was committed."""
    from autoresume.checkpoint.discover import list_checkpoints
    from autoresume.storage.local import LocalStorage

    found = {}
    for name in list_checkpoints(LocalStorage(run_folder)):
        with contextlib.suppress(FileNotFoundError):
            found[name.step] = (run_folder / name.manifest).stat().st_mtime
    return found


def train(given: argparse.Namespace) -> None:
    group = Group()
    state = states.build(given.state)
    model = DistributedDataParallel(state.model) if group.world > 1 else state.model
    ours = given.rival.startswith("autoresume")
    saver: Any = Autoresume(given, state, model) if ours else Other(given, state, group)
    copy = limits.WarmCopy(state.bytes // group.world)
    copy.seconds()
    daemon = _daemon()
    rows = []
    for step in range(1, _BETWEEN * (given.saves + 1) + _BETWEEN):
        words = state.batch(step * group.world + group.rank, _TOKENS)
        saves = step % _BETWEEN == 0
        copied = 0.0
        if saves:
            group.barrier()
            copied = min(copy.seconds() for _ in range(3))
            group.barrier()
        cost, since = _processor(daemon) if daemon else 0.0, time.time()
        began = time.perf_counter()
        model(words).backward()
        backward = time.perf_counter()
        saver.before_optimizer()
        state.optimizer.step()
        optimized = time.perf_counter()
        state.optimizer.zero_grad()
        at, wall = time.perf_counter(), time.time()
        saver.boundary(step)
        ended = time.perf_counter()
        rows.append(
            {
                "step": step,
                "copy": copied,
                "compute": backward - began + optimized - state.optimizer.entered,
                "join": state.optimizer.entered - backward,
                "boundary": ended - at,
                "wall": wall,
                "began": since,
                "daemon": cost,
            }
        )
    saver.end()
    everywhere: list[Any] = [None] * group.world
    if group.world > 1:
        dist.all_gather_object(everywhere, rows)
    else:
        everywhere = [rows]
    if group.rank == 0:
        record = Recorder(given.out, "loop", given.state, group.world, given.rival)
        evaluate(record, everywhere, saver.committed(), state.bytes)
    group.close()


def evaluate(
    record: Recorder, everywhere: list[list[dict[str, float]]], committed: dict[int, float], size: int
) -> None:
    """Figures of what all ranks saw; the first save is told apart, as it makes what later ones use again."""
    usual = [
        {
            key: statistics.median(row[key] for row in rows if row["step"] % _BETWEEN not in (0, 1))
            for key in ("join", "boundary")
        }
        for rows in everywhere
    ]
    first = everywhere[0]
    idle, busy = [], []
    for index, row in enumerate(first):
        if row["step"] % _BETWEEN == 0 and index + 1 < len(first):
            stall = max(
                rows[index]["boundary"] - one["boundary"] + rows[index + 1]["join"] - one["join"]
                for rows, one in zip(everywhere, usual)
            )
            copied = max(rows[index]["copy"] for rows in everywhere)
            if row["step"] == _BETWEEN:
                record.add("first stall", "s", stall)
            else:
                record.add("stall", "s", stall)
                record.add("stall / copy", "ratio", stall / copied)
                at = committed.get(int(row["step"]))
                if at is not None:
                    record.add("durable", "s", at - row["wall"])
        if row["step"] > _BETWEEN:
            last = row["step"] - 1 - (row["step"] - 1) % _BETWEEN
            (busy if row["began"] < committed.get(int(last), 0.0) else idle).append(row["compute"])
    record.add("step", "s", idle)
    record.add("step while persisting", "s", busy)
    if idle and busy:
        record.add("slow-down while persisting", "ratio", statistics.median(busy) / statistics.median(idle))
    if first[-1]["daemon"]:
        quiet, last = first[_BETWEEN - 1], first[-1]  # nothing was saved before the boundary that follows `quiet`
        idle_share = (quiet["daemon"] - first[0]["daemon"]) / (quiet["began"] - first[0]["began"])
        saved = sum(at <= last["began"] for at in committed.values()) or 1
        spent = last["daemon"] - quiet["daemon"] - idle_share * (last["began"] - quiet["began"])
        record.add("idle daemon", "%", 100 * idle_share)
        record.add("daemon's processor", "s/GB", max(0.0, spent) / saved / size * 1e9)


def _daemon() -> psutil.Process | None:
    """The node daemon above this rank, if there is one."""
    for parent in psutil.Process().parents():
        words = parent.cmdline()
        if "AUTORESUME_NODE_FOLDER" in os.environ and words[2:4] == ["autoresume", "node"]:
            return parent
    return None


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
