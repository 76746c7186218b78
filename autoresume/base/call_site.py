"""Where in a script something is made: what is made there again, in a later turn, is the same thing.

Law: a place is the chain of calls that leads there, to line and column, without our own frames. A `CallSite` means
something within one process only, and is never stored; what `lasting` makes of it is the same in the next one.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import os
import sys
from types import CodeType
from typing import Any

Position = tuple[int, int]
"""Line and column; -1 where they are not known."""
CallSite = tuple[tuple[CodeType, Position], ...]


def call_site() -> CallSite:
    """The place in the script that is running now."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        if not str(frame.f_globals.get("__name__", "")).startswith("autoresume."):
            found.append((frame.f_code, _position(frame.f_code, frame.f_lasti)))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _position(code: CodeType, instruction: int) -> Position:
    """Not the instruction itself: for one and the same call that is another one when it has run often."""
    if sys.version_info >= (3, 11):
        found = next(itertools.islice(code.co_positions(), instruction // 2, None), (None, None, None, None))
        return (-1 if found[0] is None else found[0]), (-1 if found[2] is None else found[2])
    lines = (line for begin, end, line in code.co_lines() if begin <= instruction < end and line is not None)
    return next(lines, -1), -1


def where(site: CallSite) -> str:
    """For people: file and line, e.g. "train.py:31"."""
    if not site:
        return "the script"
    code, (line, _) = site[0]
    return f"{os.path.basename(code.co_filename)}:{line if line >= 0 else code.co_firstlineno}"


Lasting = list[list[Any]]
"""The innermost call first: [file, function, digest of its code, line in it, column]."""


def lasting(site: CallSite) -> Lasting:
    """As it may be stored. It ends at the script's own top level, and at a generator: who takes values out of that is
    not where it was made."""
    found: Lasting = []
    for code, (line, column) in site:
        digest = hashlib.blake2b(code.co_code, digest_size=6).hexdigest()
        name = getattr(code, "co_qualname", code.co_name)  # from Python 3.11 on
        found.append([os.path.basename(code.co_filename), name, digest, line - code.co_firstlineno, column])
        if code.co_name == "<module>" or code.co_flags & inspect.CO_GENERATOR:
            break
    return found


def is_same_place(one: Lasting, other: Lasting) -> bool:
    """Whether it is the same place in the script; where a function was changed since, any place in it."""
    return len(one) == len(other) and all(
        list(a[:2]) == list(b[:2]) and (a[2] != b[2] or list(a[3:]) == list(b[3:]))
        for a, b in zip(one, other, strict=True)
    )
