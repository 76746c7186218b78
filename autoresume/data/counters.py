"""What counts the batches of a pass on its way to the loop: enumerate, islice.

Law: where a pass goes on, they go on with it, as in the undisturbed loop. They are the interpreter's own objects, which
nobody can be asked for: they are found among all that lives, once or twice for a loop. What can't be set is told.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import sys
from collections.abc import Iterator
from types import FrameType, GeneratorType
from typing import Any

_COUNTERS = (enumerate, itertools.islice, itertools.cycle)
_BETWEEN = (*_COUNTERS, zip, map, filter, tuple, itertools.chain, itertools.takewhile, GeneratorType)
_DEPTH = 6

Counted = list[list[Any]]
"""[kind, how much more than batches trained on it has counted]."""


class Counters:
    """Of one reader. `offsets` is what was found in its newest pass."""

    def __init__(self) -> None:
        self.offsets: Counted = []
        self._seen: list[Counted] = []
        self._spans = False
        self._length = 0

    def look(self, batches: Any, trained: int, length_before: int) -> list[str]:
        """At the first boundary of a pass, `trained` batches of which are done with; the pass before had
        `length_before`. Returns what is to be told."""
        if len(self._seen) < 2 or not self._is_predictable:
            self.offsets = [[type(one).__name__, _count(one) - trained] for one in _above(batches, None)]
            first, self._length = not self._seen, length_before
            self._seen = [*self._seen[-1:], self.offsets]
            return self._problems() if first else []
        if self._spans:
            self.offsets = [[kind, offset + length_before] for kind, offset in self.offsets]
        return []

    @property
    def _is_predictable(self) -> bool:
        """Each pass has new ones, or all passes are counted by the same."""
        one, other = self._seen
        shifted = [[kind, offset + self._length] for kind, offset in one]
        self._spans = other == shifted and other != one
        return other in (one, shifted)

    def _problems(self) -> list[str]:
        found = []
        for kind, _ in self.offsets:
            if kind == "cycle":
                found.append(
                    "itertools.cycle keeps the batches of its first pass and gives them again, and after a resume it "
                    "would give those of the rest of that pass. Loop over the loader anew each time: "
                    "`while True: yield from loader`"
                )
            elif not _can_set(kind):
                found.append(f"{kind} counts from its beginning again after a resume")
        return found


def go_on(batches: Any, counted: Counted, trained: int) -> bool:
    """While the first batch after a resume is being fetched: set what counts. False if it had counted to its end."""
    wanted = [[kind, offset + trained] for kind, offset in counted]
    frames = list(_callers(sys._getframe(1)))
    for one in _above(batches, frames):
        index = next((at for at, (kind, _) in enumerate(wanted) if kind == type(one).__name__), None)
        if index is None:
            continue
        _, count = wanted.pop(index)
        if isinstance(one, enumerate):
            _set_index(one, count)
        elif isinstance(one, itertools.islice) and not _set_taken(one, count):
            return False
    return True


def _above(batches: Any, frames: list[FrameType] | None) -> list[Any]:
    """The counters that take from `batches`, directly or not; `frames` are those that are running now."""
    return [one for one in gc.get_objects() if type(one) in _COUNTERS and _takes_from(one, batches, frames, _DEPTH)]


def _takes_from(one: Any, batches: Any, frames: list[FrameType] | None, depth: int) -> bool:
    if one is batches:
        return True
    if isinstance(one, GeneratorType) and frames is not None and one.gi_frame in frames:
        return True
    if not depth or type(one) not in _BETWEEN:
        return False
    return any(_takes_from(part, batches, frames, depth - 1) for part in gc.get_referents(one))


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _count(one: Any) -> int:
    if isinstance(one, enumerate):
        return int(one.__reduce__()[1][1])
    if isinstance(one, itertools.islice) and _can_set("islice"):
        taken = one.__reduce__()
        return int(taken[2]) if len(taken) > 2 else 0
    return 0


def _can_set(kind: str) -> bool:
    if kind == "enumerate":
        probe = enumerate("ab")
        return _set_index(probe, 5) and next(probe) == (5, "a")
    return hasattr(itertools.islice, "__setstate__")  # until Python 3.13


def _set_index(one: enumerate[Any], index: int) -> bool:
    """CPython has it right behind the object's head."""
    if sys.implementation.name != "cpython":
        return False
    cell, before = ctypes.c_ssize_t.from_address(id(one) + object.__basicsize__), _count(one)
    if cell.value != before:
        return False
    cell.value = index
    if _count(one) != index:
        cell.value = before
        return False
    return True


def _set_taken(one: Any, count: int) -> bool:
    """False if it has taken all that it takes."""
    if not _can_set("islice"):
        return True
    reduced = one.__reduce__()
    if len(reduced) < 3 or len(reduced[1]) < 4:
        return True
    _, begin, stop, step = reduced[1]
    if stop is not None and count >= stop:
        return False
    if step == 1 and begin <= count:
        one.__setstate__(count)
    return True
