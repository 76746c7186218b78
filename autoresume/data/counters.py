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

    def look(self, batches: Any, trained: int, length_before: int, running: bool = False) -> list[str]:
        """At the first boundary of a pass, `trained` batches of which are done with; the pass before had
        `length_before`. `running`: this is called by who gives the batches. Returns what is to be told."""
        if len(self._seen) < 2 or not self._is_predictable:
            frames = list(_callers(sys._getframe(1))) if running else None
            self.offsets = [[type(one).__name__, _count(one) - trained] for one in _above(batches, frames)]
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


class LoopCount:
    """The turns of one loop over a loader of ours, or over `run.batches`. `turns` were begun, in whichever life;
    `epoch` is where it stands. `batches` is the iterator; None if that is a generator which is running."""

    def __init__(self) -> None:
        self.turns = 0
        self.epoch = 0
        self._counters = Counters()
        self._before: Counted = []
        """What counted before the resume."""
        self._going_on = False
        self._looked = False
        self._length = 0

    def begin(self, epoch: int, counts_epochs: bool) -> None:
        """A loop begins: over the rest of an epoch, or over several."""
        goes_on = self._going_on and (counts_epochs or epoch == self.epoch)
        if not goes_on:
            self._length, self.turns, self._before = self.turns, 0, []
        self._going_on, self._looked = False, False

    def goes_on(self, batches: Any = None) -> bool:
        """Before a batch is fetched: False if what takes them has taken all that it takes."""
        counted, self._before = self._before, []
        return not counted or go_on(batches, counted, self.turns)

    def turn(self, epoch: int) -> None:
        """A batch was fetched."""
        self.turns, self.epoch = self.turns + 1, epoch

    def before_boundary(self, batches: Any = None, held: int = 0) -> list[str]:
        """Of the batches that were fetched, `held` are not trained on. Returns what is to be told."""
        if self._looked or not self.turns:
            return []
        self._looked = True
        return self._counters.look(batches, self.turns - held, self._length, running=batches is None)

    def state(self) -> dict[str, Any]:
        return {"turns": self.turns, "epoch": self.epoch, "counted": self._before or self._counters.offsets}

    def load_state(self, state: dict[str, Any]) -> None:
        self.turns, self.epoch, self._going_on = int(state["turns"]), int(state["epoch"]), True
        self._before = [list(one) for one in state["counted"]]


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
    if one is batches and batches is not None:
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
