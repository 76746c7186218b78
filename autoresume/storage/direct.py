"""Large writes past the page cache, in blocks, by several threads; or through it, where a file system has none such.

Law: when one of these returns, the bytes are with the file; whether they are durable is up to fsync (local.py).
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autoresume.base.failpoints import failpoint

BLOCK = 8 * 1024 * 1024
_ALIGNMENT = 4096
_DIRECT_FROM = 4 * 1024 * 1024
"""Below this a buffered write is as fast."""
_NO_DIRECT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


def write(path: Path, descriptor: int, view: memoryview) -> None:
    """Write all of `view` to the file at `path`, which `descriptor` is open on. Raises OSError."""
    if len(view) < _DIRECT_FROM or not _write_direct(path, descriptor, view):
        write_buffered(descriptor, view)


def write_buffered(descriptor: int, view: memoryview) -> None:
    for begin in range(0, len(view), BLOCK):
        _write_at(descriptor, view[begin : begin + BLOCK], begin)


def _write_direct(path: Path, descriptor: int, view: memoryview) -> bool:
    """Write all of `view` past the page cache; False where the file system refuses, nothing lost then."""
    try:
        direct = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NO_DIRECT:
            return False
        raise
    try:
        try:
            os.posix_fallocate(descriptor, 0, len(view))  # one extent instead of hundreds
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                raise
        whole = len(view) - len(view) % _ALIGNMENT
        blocks = _DirectBlocks(direct, descriptor, view, range(0, whole, BLOCK), whole)
        try:
            if whole:
                blocks.write(0)
        except OSError as error:
            if error.errno in _NO_DIRECT:
                return False
            raise
        # A second one keeps the disk busy while the first is between two blocks.
        with ThreadPoolExecutor(1, "autoresume-write") as pool:
            other = pool.submit(blocks.write_all)
            blocks.write_all()
            other.result()
        _write_at(descriptor, view[whole:], whole)
        return True
    finally:
        os.close(direct)


class _DirectBlocks:
    """The blocks of one file, written in any order by several threads."""

    def __init__(self, direct: int, buffered: int, view: memoryview, begins: range, end: int) -> None:
        self._direct, self._buffered, self._view, self._end = direct, buffered, view, end
        self._left = deque(begins[1:])
        self._aligned = _address(view) % _ALIGNMENT == 0

    def write_all(self) -> None:
        """Take what is left, block by block; if one fails the others are left alone. Raises OSError."""
        while True:
            try:
                begin = self._left.popleft()
            except IndexError:
                return
            try:
                self.write(begin)
            except BaseException:
                self._left.clear()
                raise

    def write(self, begin: int) -> None:
        block = self._view[begin : min(begin + BLOCK, self._end)]
        if not self._aligned:
            # The kernel wants aligned memory; a view of a mapped arena is aligned, anything else goes through this.
            window = memoryview(mmap.mmap(-1, len(block)))
            window[:] = block
            block = window
        count = os.pwrite(self._direct, block, begin)
        if count < len(block):
            _write_at(self._buffered, block[count:], begin + count)  # what is left may be aligned no more
        failpoint("storage.write.block")


def _write_at(descriptor: int, view: memoryview, offset: int) -> None:
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _address(view: memoryview) -> int:
    import numpy  # the one way to a read-only buffer's address; not needed for small files

    return int(numpy.frombuffer(view, dtype=numpy.uint8).ctypes.data)
