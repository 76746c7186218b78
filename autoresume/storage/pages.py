"""What the kernel knows of pages, and how it is told what they are for.

Law: these are questions and hints. Where the kernel has no answer, reading goes on without one.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap

_HUGE_PAGE = 2 * 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


def cached(descriptor: int, begin: int, end: int) -> bool:
    """Whether at least half of the bytes [begin, end) of a file are in the page cache.

    To those who may not write the file, Linux says yes: they could watch what others read.
    """
    begin -= begin % mmap.PAGESIZE
    try:
        pages = mmap.mmap(descriptor, end - begin, access=mmap.ACCESS_COPY, offset=begin)
    except (OSError, ValueError):
        return True  # too short, or it can't be mapped
    with contextlib.closing(pages):
        found = (ctypes.c_ubyte * -(-len(pages) // mmap.PAGESIZE))()
        if _libc.mincore(ctypes.c_void_p(address(pages)), ctypes.c_size_t(len(pages)), found) != 0:
            return True
        return 2 * bytes(found).count(1) >= len(found)


def address(memory: memoryview | mmap.mmap) -> int:
    """Where writable memory begins. It must stay mapped for as long as the address is used."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def use_huge_pages(begin: int, size: int) -> None:
    """Let fresh memory come in huge pages: the first touch of 4 KiB pages costs several times the copy into them."""
    first = -(-begin // _HUGE_PAGE) * _HUGE_PAGE
    last = (begin + size) // _HUGE_PAGE * _HUGE_PAGE
    if first < last:
        _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE)


def copy(target: memoryview, source: memoryview) -> None:
    """Both writable, and of the same size. Other threads run meanwhile."""
    if len(source) < _WORTH_A_CALL:
        target[:] = source
    else:
        ctypes.memmove(address(target), address(source), len(source))


_WORTH_A_CALL = 32 * 1024
