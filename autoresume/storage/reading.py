"""A file that is read in blocks, at the speed of what holds it: memory or a disk.

Law: bytes go to where they are wanted, with no stop but a small buffer that is used again and again, and are
shown on their way, while they are in the processor's cache, to whoever verifies them. What is in the page
cache is taken from there; what is not is read past it (O_DIRECT), where the file system takes that.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from autoresume.storage import pages

Target = tuple[int, memoryview]
"""Where bytes of a file are wanted: the offset of the first one, and the memory that they go to."""

_ALIGNMENT = 4096
_WINDOW = 8 * 1024 * 1024
"""Read at once past the page cache. Disks and file servers want large requests, and several of them."""
_DIRECT_FROM = 1024 * 1024
"""Below this the page cache is as fast."""
_PIECE = 256 * 1024
"""What is read, verified and copied while it is in the processor's cache."""
_MANY = 16
"""Of more targets than this in one piece each is so small that a copy of its own is cheaper than a read."""
NO_DIRECT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


def open_file(path: Path, base: int = 0) -> OpenFile:
    """For a file that is no storage's; offsets in it are counted from `base`. Raises OSError."""
    return OpenFile(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), path.name, base)


class OpenFile:
    """A file that was opened for reading; it is closed with this. Any number of threads may fill from it."""

    def __init__(self, descriptor: int, name: str, base: int = 0) -> None:
        self._descriptor, self._name, self._base = descriptor, name, base
        self._direct: int | None = None
        self._asked = False
        self._lock = threading.Lock()

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)
        self._direct, self._asked = None, True

    def fill(
        self, begin: int, end: int, targets: Sequence[Target] = (), through_cache: bool = False
    ) -> Iterator[memoryview]:
        """As `base.Reader` has it."""
        if self._base:
            begin, end = begin + self._base, end + self._base
            targets = [(offset + self._base, memory) for offset, memory in targets]
        known = through_cache or end - begin < _DIRECT_FROM or pages.cached(self._descriptor, begin, end)
        if not known and (direct := self._past_the_cache()) is not None:
            begin = yield from self._fill_direct(direct, begin, end, targets)
        if begin < end:
            if not known or through_cache:
                os.posix_fadvise(self._descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)
            yield from self._fill_buffered(begin, end, targets)

    def _past_the_cache(self) -> int | None:
        """A second descriptor of the same file; None where there can't be one."""
        with self._lock:
            if not self._asked:
                self._asked = True
                try:
                    path = f"/proc/self/fd/{self._descriptor}"
                    self._direct = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
                except OSError:
                    self._direct = None
            return self._direct

    def _fill_direct(
        self, direct: int, begin: int, end: int, targets: Sequence[Target]
    ) -> Generator[memoryview, None, int]:
        """The same past the page cache; returns how far it came, which is not the end where the system refuses."""
        window = _buffer(_WINDOW)
        room = len(window) - _ALIGNMENT
        for at in range(begin, end, room):
            to = min(at + room, end)
            skipped = at % _ALIGNMENT
            if not self._read_window(direct, window, at - skipped, skipped + to - at):
                return at
            ready = window[skipped : skipped + to - at]
            for first, last, wanted in _pieces(at, to, targets):
                yield ready[first - at : last - at]
                for offset, memory in wanted:
                    pages.copy(memory, ready[offset - at : offset - at + len(memory)])
        return end

    def _read_window(self, direct: int, window: memoryview, offset: int, size: int) -> bool:
        """Read `size` bytes from an aligned offset; False where that can't be done in aligned requests."""
        done, whole = 0, -(-size // _ALIGNMENT) * _ALIGNMENT
        while done < size:
            try:
                count = os.preadv(direct, [window[done:whole]], offset + done)
            except OSError as error:
                if error.errno in NO_DIRECT:
                    return False
                raise
            done += count
            if done < size and (count == 0 or count % _ALIGNMENT):
                return False  # the end of the file, or a short read: the other way tells which
        return True

    def _fill_buffered(self, begin: int, end: int, targets: Sequence[Target]) -> Iterator[memoryview]:
        scratch = _buffer(_PIECE)
        for first, last, wanted in _pieces(begin, end, targets):
            if len(wanted) > _MANY:
                piece = scratch[: last - first]
                self._read([piece], first)
                yield piece
                for offset, memory in wanted:
                    memory[:] = piece[offset - first : offset - first + len(memory)]
            else:
                memories = _with_gaps(first, last, wanted, scratch)
                self._read(memories, first)
                yield from memories

    def _read(self, memories: Sequence[memoryview], offset: int) -> None:
        left = list(memories)
        while left:
            count = os.preadv(self._descriptor, left, offset)
            if count == 0:
                raise EOFError(f"{self._name} ends at byte {offset}, {sum(map(len, left))} bytes too early")
            offset += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]


def _pieces(begin: int, end: int, targets: Sequence[Target]) -> Iterator[tuple[int, int, list[Target]]]:
    """(begin, end, the targets in it, cut to it) of each piece of [begin, end)."""
    index = 0
    for first in range(begin, end, _PIECE):
        last = min(first + _PIECE, end)
        found = []
        while index < len(targets) and targets[index][0] < last:
            offset, memory = targets[index]
            a, b = max(first, offset), min(last, offset + len(memory))
            if a < b:
                found.append((a, memory[a - offset : b - offset]))
            if offset + len(memory) > last:
                break
            index += 1
        yield first, last, found


def _with_gaps(begin: int, end: int, targets: Sequence[Target], scratch: memoryview) -> list[memoryview]:
    """Memory for every byte of [begin, end): the targets', and scratch where nobody wants them."""
    found, at = [], begin
    for offset, memory in targets:
        if at < offset:
            found.append(scratch[at - begin : offset - begin])
        found.append(memory)
        at = offset + len(memory)
    if at < end:
        found.append(scratch[at - begin : end - begin])
    return found


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.memory = memoryview(b"")


_buffers = _Buffers()


def _buffer(size: int) -> memoryview:
    """This thread's own, aligned, with room to round up. It goes with the thread."""
    if len(_buffers.memory) < size:
        _buffers.memory = memoryview(mmap.mmap(-1, size + _ALIGNMENT))
    return _buffers.memory
