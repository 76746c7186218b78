"""What every measurement needs: ranks that act together, clocks, processor time, cold caches, and records.

Law: a figure is a list of samples of one unit; medians and minima are made by `report`, never here. What
several ranks do together took as long as the slowest of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import mmap
import os
import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

_COLD_SHARE = 0.01
"""Of pages that may still be in the page cache: headers, perhaps, that another thread reads ahead."""


@dataclass(frozen=True)
class Figure:
    """A line of results.jsonl."""

    suite: str
    state: str
    world: int
    rival: str
    figure: str
    unit: str
    samples: list[float]


class Recorder:
    """Appends figures of one measured process to a file; on rank 0 only."""

    def __init__(self, out: str, suite: str, state: str, world: int, rival: str, rank: int = 0) -> None:
        self._out, self._rank = Path(out), rank
        self._about = (suite, state, world, rival)

    def add(self, figure: str, unit: str, samples: float | Sequence[float], rival: str | None = None) -> None:
        if self._rank != 0:
            return
        suite, state, world, own = self._about
        values = [samples] if isinstance(samples, (int, float)) else list(samples)
        if not values:
            return
        line = asdict(Figure(suite, state, world, rival or own, figure, unit, [float(f"{v:.6g}") for v in values]))
        with open(self._out, "a") as file:
            file.write(json.dumps(line) + "\n")


class Group:
    """The ranks of a measured process; alone where there is no launcher."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def worst(self, value: float) -> float:
        return max(self.all(value))

    def sum(self, value: float) -> float:
        return sum(self.all(value))

    def all(self, value: float) -> list[float]:
        if self.world == 1:
            return [value]
        found = [torch.zeros(1, dtype=torch.float64) for _ in range(self.world)]
        dist.all_gather(found, torch.tensor([value], dtype=torch.float64))
        return [float(one) for one in found]

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


def processor_seconds(others: Iterable[psutil.Process] = ()) -> float:
    """User and system time of this process, of its children (also of those that have ended), and of `others`.

    Without what the kernel does in threads of its own, such as writing back a page cache.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for process in [*psutil.Process().children(recursive=True), *others]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def sync_tree(folder: Path) -> None:
    """Make everything below `folder` durable: each file, each folder, and the folder's own name."""
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(Path(parent) / name)
        _sync(Path(parent))
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_caches(folder: Path) -> None:
    """Make the files below `folder` cold. The rest of the machine's page cache stays, if that is enough.

    Raises RuntimeError if they stay warm all the same.
    """
    gc.collect()
    files = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    if _cached_share(files) > _COLD_SHARE:
        with contextlib.suppress(OSError):
            Path("/proc/sys/vm/drop_caches").write_text("3\n")
        if _cached_share(files) > _COLD_SHARE:
            raise RuntimeError(f"{_cached_share(files):.0%} of what should be cold lies in the page cache")


def _cached_share(files: Iterable[Path]) -> float:
    """Of all pages of these files."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = cached = 0
    for path in files:
        size = path.stat().st_size
        if not size:
            continue
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        first = ctypes.c_char.from_buffer(mapped)
        found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        if libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), found):
            raise OSError(ctypes.get_errno(), "mincore")
        del first
        mapped.close()
        pages += len(found)
        cached += sum(one & 1 for one in found)
    return cached / max(1, pages)


def warm_cache(folder: Path) -> None:
    """Read every file below `folder` once, so that it lies in the page cache."""
    block = bytearray(1 << 23)
    for parent, _, files in os.walk(folder):
        for name in files:
            with open(Path(parent) / name, "rb", buffering=0) as file:
                while file.readinto(block):
                    pass
