"""What a save costs on this machine and this disk, tried with the code that saves, before anything trains.

Law: as many processes as the node has ranks copy as many bytes as each would, into memory of the kind that a snapshot
lies in, and persist and commit them in a folder of their own, which is gone afterwards. No run is touched. Where the
state is too large to be tried, less of it is, and times are scaled by its size. `Estimate` is pure.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from autoresume.base.findings import format_bytes
from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.checks.folder import nearest, trial
from autoresume.errors import AutoresumeError, StorageFailed, UsageError
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk, chunks_json
from autoresume.format.tensorfile import Entry, lay_out
from autoresume.handoff.arena import Arena
from autoresume.handoff.mailbox import memory_root
from autoresume.run.cadence import Cadence
from autoresume.storage.local import LocalStorage

_TENSOR_BYTES = 2_500_000
"""Of a transformer with 125M parameters and AdamW, on average."""
_HEADROOM_BYTES = 128 << 20
"""For each rank: more than `persist` leaves to others."""
_MOST_BYTES = 4_000_000_000
"""Tried at once on this node: enough to see past the caches of disks."""


@dataclass(frozen=True)
class Trial:
    """What was measured on this node: seconds, one for each round. `state_bytes` is this node's share."""

    state_bytes: int
    tried_bytes: int
    copy: tuple[float, ...]
    """How long the slowest rank's copy took."""
    persist: tuple[float, ...]
    """From there to the commit."""
    processor: tuple[float, ...]
    """User and system time of all ranks together."""

    @property
    def scale(self) -> float:
        return self.state_bytes / self.tried_bytes

    @property
    def stall_seconds(self) -> float:
        """How long training stands still, if nothing hides the copy behind forward and backward."""
        return statistics.median(self.copy) * self.scale

    @property
    def durable_seconds(self) -> float:
        """From the step boundary to the commit."""
        return statistics.median(a + b for a, b in zip(self.copy, self.persist)) * self.scale

    @property
    def processor_seconds(self) -> float:
        return statistics.median(self.processor) * self.scale


@dataclass(frozen=True)
class Estimate:
    """What follows for a run. `grace_seconds` may be unknown, and so may `step_seconds`."""

    trial: Trial
    failure_seconds: float
    """Mean time between interruptions."""
    grace_seconds: float | None
    step_seconds: float | None

    @property
    def last_save_seconds(self) -> float:
        """From the signal to the commit: a step that has just begun, and a save."""
        return (self.step_seconds or 0.0) + self.trial.durable_seconds

    @property
    def fits(self) -> bool | None:
        return None if self.grace_seconds is None else self.last_save_seconds <= self.grace_seconds

    @property
    def interval_seconds(self) -> float:
        """As save_every=auto chooses it; never shorter than it takes until a save is durable."""
        cadence = Cadence(None, 0.0, 0.0, cost_seconds=self.trial.stall_seconds, failure_seconds=self.failure_seconds)
        return max(cadence.interval_seconds, self.trial.durable_seconds)

    @property
    def stall_share(self) -> float:
        """Of the training's time."""
        return self.trial.stall_seconds / self.interval_seconds

    @property
    def lost_seconds(self) -> float:
        """Of training, on average, by an interruption that leaves no time for a last save."""
        return self.interval_seconds / 2 + self.trial.durable_seconds


def measure(folder: Path, state_bytes: int, ranks: int, rounds: int) -> Trial:
    """Try it below `folder`, or the one above it that is there. `state_bytes` is what this node holds of the state.

    Raises UsageError where disk or memory have no room for it, StorageFailed where saving fails.
    """
    tried = _room(folder, state_bytes, ranks)
    try:
        with trial(folder) as storage, _ranks(storage, tried, ranks) as children:
            taken = [_round(storage, children, number) for number in range(rounds + 1)][1:]  # the first one warms up
    except OSError as error:
        raise StorageFailed(
            f"saving can't be tried in {nearest(folder)}: {error.strerror or error}. Nothing is left behind; give a "
            "folder that is yours and has room, with --run-dir."
        ) from error
    copy, persisted, processor = zip(*taken)
    return Trial(state_bytes, tried, copy, persisted, processor)


def _room(folder: Path, state_bytes: int, ranks: int) -> int:
    """How many bytes can be tried. Raises UsageError where not even one checkpoint fits."""
    stats = os.statvfs(nearest(folder))
    free = stats.f_bavail * stats.f_frsize
    needed = state_bytes + ranks * _HEADROOM_BYTES
    if free < needed:
        raise UsageError(
            f"{nearest(folder)} has {format_bytes(free)} free, and one checkpoint of {format_bytes(state_bytes)} needs "
            f"{format_bytes(needed)} with what is left to others: no run could save there. Free some, choose another "
            "folder with --run-dir, or give a smaller --state."
        )
    memory = psutil.virtual_memory().available
    stats = os.statvfs(memory_root())
    held = stats.f_bavail * stats.f_frsize
    possible = min(_MOST_BYTES, memory // 4, held // 2)
    if possible < min(state_bytes, _HEADROOM_BYTES):
        raise UsageError(
            f"there are {format_bytes(memory)} of memory available, and {format_bytes(held)} in {memory_root()}: too "
            f"few to try a snapshot of {format_bytes(state_bytes)}. Stop what uses them, or ask for more memory."
        )
    return min(state_bytes, possible)


# -- the ranks ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ranks(storage: LocalStorage, count: int, ranks: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that do what they are told by a line, and answer with one."""
    threads = max(1, (os.cpu_count() or 1) // ranks)
    share = -(-count // ranks)
    words = [
        sys.executable,
        "-m",
        "autoresume.checks.save_cost",
        str(storage.root),
        str(share),
        str(threads),
        str(ranks),
    ]
    with contextlib.ExitStack() as stack:
        children = []
        for rank in range(ranks):
            child = subprocess.Popen([*words, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            children.append(stack.enter_context(child))
            stack.callback(child.kill)  # also in the middle of a write: its memory is its own, and the folder goes
        yield children


def _round(storage: LocalStorage, children: Sequence[subprocess.Popen[str]], number: int) -> tuple[float, float, float]:
    """(copy, persist, processor) in seconds."""
    name = CheckpointName(step=number, incarnation=1, epoch=0, samples=0)
    copied = _ask(children, {"what": "copy", "number": number})
    persisted = _ask(children, {"what": "persist", "number": number})
    storage.remove(name.folder)
    processor = sum(one["processor"] for one in (*copied, *persisted))
    return max(one["seconds"] for one in copied), max(one["seconds"] for one in persisted), processor


def _ask(children: Sequence[subprocess.Popen[str]], order: dict[str, Any]) -> list[dict[str, float]]:
    """Have all ranks do one thing at the same time. Raises StorageFailed with the first one's reason."""
    for child in children:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(order) + "\n")
            child.stdin.flush()
    answers = []
    for child in children:
        assert child.stdout is not None
        answers.append(json.loads(child.stdout.readline() or '{"problem": "a process that tried it was killed"}'))
    problem = next((one["problem"] for one in answers if "problem" in one), None)
    if problem is not None:
        raise StorageFailed(f"a save was tried, and failed: {problem}")
    return answers


class _Rank:
    """One of the processes: state in memory, and an arena that it is copied into."""

    def __init__(self, folder: Path, share: int, threads: int, ranks: int, rank: int) -> None:
        self.storage, self.rank, self.ranks = LocalStorage(folder), rank, ranks
        count = max(1, share // _TENSOR_BYTES)
        each = -(-share // count)
        self.layout = lay_out([Entry(f"state/{index}", "uint8", (each,)) for index in range(count)], {"format": "pt"})
        self.each = each
        path = memory_root() / f"bench-{os.getpid()}-{secrets.token_hex(4)}"
        self.arena = Arena(self.layout.size, path)
        path.unlink()  # it stays until this process ends, however it does
        self.state = mmap.mmap(-1, count * each)
        pattern = os.urandom(1 << 20)  # some file systems compress
        for offset in range(0, len(self.state), len(pattern)):
            self.state[offset : offset + len(pattern)] = pattern[: len(self.state) - offset]
        self.pool = ThreadPoolExecutor(threads, "autoresume-bench")
        self.threads = threads

    def copy(self) -> None:
        source, target = _address(self.state), _address(self.arena.memory)
        begins = self.layout.begins

        def part(which: int) -> None:
            for index in range(which, len(begins), self.threads):
                ctypes.memmove(target + begins[index], source + index * self.each, self.each)

        list(self.pool.map(part, range(self.threads)))

    def persist(self, number: int) -> None:
        name = CheckpointName(step=number, incarnation=1, epoch=0, samples=0)
        image = self.arena.view(self.layout.size)
        image[: len(self.layout.header)] = self.layout.header
        chunks = tuple(
            Chunk(entry.name, entry.dtype, entry.shape, (0,), entry.shape, False, begin)
            for entry, begin in zip(self.layout.entries, self.layout.begins)
        )
        snapshot = Snapshot("bench", name, self.rank, self.ranks, time.time(), image, chunks_json(chunks), b"{}", {})
        persist(self.storage, snapshot, lambda: None)
        commit_if_complete(self.storage, name, lambda: None)


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _serve(rank: _Rank) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        began, cost = time.perf_counter(), time.process_time()
        try:
            if order["what"] == "copy":
                rank.copy()
            else:
                rank.persist(order["number"])
            answer: dict[str, Any] = {
                "seconds": time.perf_counter() - began,
                "processor": time.process_time() - cost,
            }
        except (AutoresumeError, OSError) as error:
            answer = {"problem": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to all; whoever started this ends it
    folder, *numbers = sys.argv[1:]
    try:
        rank = _Rank(Path(folder), *map(int, numbers))
    except (MemoryError, OSError) as error:
        sys.stdout.write(json.dumps({"problem": str(error)}) + "\n")
        return
    _serve(rank)


if __name__ == "__main__":
    _main()
