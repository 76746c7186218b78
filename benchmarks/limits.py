"""What no checkpointing can beat on this machine: plain copies and plain direct I/O of as many bytes.

Law: each limit is measured in the process, and at the moment, of what is compared with it.
"""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_BLOCK = 8 << 20
_READERS = 4
_MOST_COPIED = 1 << 30
_PAGE = mmap.PAGESIZE


class WarmCopy:
    """One plain copy of `count` bytes, by all of torch's threads, into memory that was touched before.

    Of more than a GB the same GB is copied again: it is beyond all caches, and memory is left to what is measured.
    """

    def __init__(self, count: int) -> None:
        self._left = max(4, count) // 4
        self._source = torch.ones(min(self._left, _MOST_COPIED // 4), dtype=torch.float32)
        self._target = torch.zeros_like(self._source)

    def seconds(self) -> float:
        began = time.perf_counter()
        left = self._left
        while left:
            part = min(left, self._source.numel())
            self._target[:part].copy_(self._source[:part])
            left -= part
        return time.perf_counter() - began


def aligned(count: int) -> mmap.mmap:
    """Memory that direct I/O accepts, a whole number of pages."""
    memory = mmap.mmap(-1, -(-count // _PAGE) * _PAGE)
    pattern = os.urandom(1 << 20)
    for offset in range(0, len(memory), len(pattern)):
        memory[offset : offset + len(pattern)] = pattern[: len(memory) - offset]
    return memory


def write(folder: Path, count: int, name: str = "raw") -> float:
    """Seconds of one sequential direct write into a new file, until bytes and name are durable; the file stays."""
    block = aligned(min(_BLOCK, count))
    path = folder / name
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    descriptor = _open(path, os.O_WRONLY | os.O_CREAT)
    try:
        offset = 0
        while offset < count:
            offset += os.pwrite(descriptor, memoryview(block), offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    parent = os.open(folder, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)
    return time.perf_counter() - began


def _open(path: Path, flags: int) -> int:
    """For direct I/O; plainly, where the file system refuses that."""
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError:
        return os.open(path, flags, 0o600)


def read(path: Path) -> float:
    """Seconds of reading a file past the page cache, by several threads, a block each."""
    size = path.stat().st_size
    descriptor = _open(path, os.O_RDONLY)
    blocks = [aligned(_BLOCK) for _ in range(_READERS)]

    def part(which: int) -> None:
        for offset in range(which * _BLOCK, size, _READERS * _BLOCK):
            os.preadv(descriptor, [blocks[which]], offset)

    began = time.perf_counter()
    try:
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(part, range(_READERS)))
    finally:
        os.close(descriptor)
    return time.perf_counter() - began


class MappedCopy:
    """A copy from a file that lies in the page cache into memory that was touched before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._target = torch.ones(path.stat().st_size, dtype=torch.uint8)

    def seconds(self) -> float:
        began = time.perf_counter()
        with open(self._path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
        self._target.copy_(torch.frombuffer(mapped, dtype=torch.uint8))
        return time.perf_counter() - began
