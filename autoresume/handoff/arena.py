"""Memory that holds one snapshot: allocated once, faulted in before it is needed, used again and again.

Law: an arena either has all its pages when it is created or raises MemoryError; a later copy into it
never fails and never faults. A named arena is a file in the node's folder on tmpfs, which outlives
the rank; an unnamed one is the rank's own and dies with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from pathlib import Path

from autoresume.storage import pages

_MADV_POPULATE_WRITE = 23  # Linux 5.14; mmap has no name for it
_PAGE = mmap.PAGESIZE
_POPULATE_BYTES = 64 * 1024 * 1024
_madvise = ctypes.CDLL(None).madvise  # mmap's own does not let other threads run
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Arena:
    """`size` bytes of memory, shared through the file `path` if that is given."""

    def __init__(self, size: int, path: Path | None = None) -> None:
        """Raises MemoryError when there is not enough memory (or room in tmpfs); nothing is left behind then."""
        self.path = path
        self.size = max(_PAGE, -(-size // _PAGE) * _PAGE)
        if path is None:
            try:
                self.memory = mmap.mmap(-1, self.size)
            except OSError as error:
                raise MemoryError(f"there are no {self.size / 1e6:.1f} MB of memory") from error
        else:
            self.memory = _create(path, self.size)
        _populate(self.memory)

    @classmethod
    def open(cls, path: Path) -> Arena:
        """Map an arena that another process made, for reading."""
        arena = cls.__new__(cls)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            arena.path, arena.size = path, os.fstat(descriptor).st_size
            arena.memory = mmap.mmap(descriptor, arena.size, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        return arena

    def view(self, size: int) -> memoryview:
        return memoryview(self.memory)[:size]

    def close(self, unlink: bool = False) -> None:
        """Unmap; with `unlink` give the memory back. Views that are still held keep the mapping alive."""
        with contextlib.suppress(BufferError):
            self.memory.close()
        if unlink and self.path is not None:
            self.path.unlink(missing_ok=True)


def _create(path: Path, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Reserve the pages now: an arena without them would end in SIGBUS in the middle of a copy.
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
            raise MemoryError(f"{path.parent} has no room for {size / 1e6:.1f} MB") from error
        raise
    finally:
        os.close(descriptor)


def _populate(memory: mmap.mmap) -> None:
    """Fault all pages in, in steps that leave the interpreter to other threads."""
    begin = pages.address(memory)
    for offset in range(0, len(memory), _POPULATE_BYTES):
        size = min(_POPULATE_BYTES, len(memory) - offset)
        if _madvise(begin + offset, size, _MADV_POPULATE_WRITE) != 0:
            for page in range(offset, offset + size, _PAGE):
                memory[page] = 0
