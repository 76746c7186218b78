"""Ranges that remember where they are.

Law: the turn in progress is part of the run's state, and is entered again after a resume. A range that
was begun in a turn of another one goes on only in that turn; in the next it begins anew. Ranges without a
name are told apart by their place in the script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from autoresume.base.call_site import CallSite
from autoresume.errors import UsageError


class ResumableRange:
    """`value` is the turn in progress. `outer` is the turn of the ranges around it (see `Ranges.turn`), `order` tells
    which ones were begun after it."""

    def __init__(self, value: int | None, outer: str) -> None:
        self.value = value
        self.outer = outer
        self.order = 0
        self._resume = value is not None

    def goes_on(self, outer: str) -> bool:
        """Whether iterating it now, in that turn of the others, enters the turn in which the run was interrupted."""
        return self._resume and self.outer == outer

    def iterate(self, outer: str, *bounds: int, after: Callable[[int], None] | None = None) -> Iterator[int]:
        values = range(*bounds)
        begin = self._begin(values) if self.goes_on(outer) else 0
        self._resume, self.outer = False, outer
        try:
            for value in values[begin:]:
                self.value = value
                yield value
                if after is not None:
                    self.value = value + values.step  # what is saved now is the beginning of the next turn
                    after(value)
        finally:
            # Past the end, also after a break: a loop that was left is not entered again after a resume. An
            # interruption does not come here before the state is saved.
            self.value = values[-1] + values.step if len(values) else self.value

    def _begin(self, values: range) -> int:
        assert self.value is not None
        if self.value in values:
            return values.index(self.value)
        if len(values) and (self.value - values[-1]) * values.step > 0:
            return len(values)
        raise UsageError(f"the run was interrupted at {self.value}, which {values} does not contain")


class Ranges:
    """All ranges of a run, by name."""

    def __init__(self) -> None:
        self._ranges: dict[str, ResumableRange] = {}
        self._places: dict[tuple[str, CallSite], str] = {}
        self._open: list[str] = []
        self._begun = 0
        self._waiting: dict[str, Any] = {}

    def turn(self) -> str:
        """The turn that each range stands at which is being iterated, the outermost first; "" outside of all."""
        return "/".join(f"{name}={self._ranges[name].value}" for name in self._open)

    def iterate(
        self,
        kind: str,
        name: str | None,
        place: CallSite,
        bounds: tuple[int, ...],
        after: Callable[[int], None] | None = None,
    ) -> Iterator[int]:
        """The values of a range called `name`, or of the one of this `kind` that is made at `place`.

        `after` is called when a turn has ended, with its value, and finds the range at the next one.
        """
        name = name or self._places.get((kind, place)) or self._new_name(kind)
        self._places[kind, place] = name
        if name not in self._ranges:
            state = self._waiting.pop(name, {"value": None, "outer": ""})
            self._ranges[name] = ResumableRange(state["value"], state["outer"])
            self._ranges[name].order = int(state.get("order", 0))
        return self._turns(name, bounds, after)

    def _new_name(self, kind: str) -> str:
        """The name of a range that waits for being made in this very turn, or in one that is over; else a new one."""
        turn = self.turn()
        waiting = [name for name in self._waiting if name.rstrip("0123456789") == kind]
        waiting.sort(key=lambda name: int(self._waiting[name]["order"]))
        running = [name for name in waiting if self._waiting[name]["outer"] == turn]
        over = [name for name in waiting if turn and self._waiting[name]["outer"]]
        taken = self._ranges.keys() | self._waiting.keys()
        free = (name for index in range(len(taken) + 1) if (name := f"{kind}{index or ''}") not in taken)
        return next(iter([*running, *over]), None) or next(free)

    def _turns(self, name: str, bounds: tuple[int, ...], after: Callable[[int], None] | None) -> Iterator[int]:
        outer = self.turn()
        if not self._ranges[name].goes_on(outer):  # else it was begun before the resume
            self._begun += 1
            self._ranges[name].order = self._begun
        self._open.append(name)
        try:
            yield from self._ranges[name].iterate(outer, *bounds, after=after)
        finally:
            self._open.remove(name)

    def state(self) -> dict[str, Any]:
        made = {
            name: {"value": one.value, "outer": one.outer, "order": one.order} for name, one in self._ranges.items()
        }
        return {**self._waiting, **made}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._waiting = dict(state)
        self._begun = max((int(one["order"]) for one in state.values()), default=0)
