"""Where in a script something is made: what is made there again, in a later turn, is the same thing.

Law: a place is the chain of calls that leads there, to the instruction, without our own frames. It means
something within one process only, and is never stored.
"""

from __future__ import annotations

import os
import sys
from types import CodeType

CallSite = tuple[tuple[CodeType, int], ...]


def call_site() -> CallSite:
    """The place in the script that is running now."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        if not str(frame.f_globals.get("__name__", "")).startswith("autoresume."):
            found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


def where(site: CallSite) -> str:
    """For people: file and line, e.g. "train.py:31"."""
    if not site:
        return "the script"
    code, instruction = site[0]
    lines = (line for begin, end, line in code.co_lines() if begin <= instruction < end and line is not None)
    return f"{os.path.basename(code.co_filename)}:{next(lines, code.co_firstlineno)}"
