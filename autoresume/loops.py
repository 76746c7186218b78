"""A range that remembers where it is."""

from __future__ import annotations

from collections.abc import Iterator

from autoresume.errors import UsageError


class ResumableRange:
    """`value` is the turn in progress, part of the run's state. After a resume that turn is entered again."""

    def __init__(self, value: int | None = None) -> None:
        self.value = value
        self._resume = value is not None
        self.inner: set[ResumableRange] = set()
        """Ranges that were begun in a turn of this one."""

    def forget(self) -> None:
        """The outer loop is in another turn: this one begins anew."""
        self.value, self._resume = None, False
        for inner in self.inner:
            inner.forget()

    def iterate(self, *bounds: int) -> Iterator[int]:
        values = range(*bounds)
        begin = 0
        if self._resume and self.value is not None:
            self._resume = False
            if self.value in values:
                begin = values.index(self.value)
            elif len(values) and (self.value - values[-1]) * values.step > 0:
                begin = len(values)
            else:
                raise UsageError(f"the run was interrupted at {self.value}, which {values} does not contain")
        for turn, value in enumerate(values[begin:]):
            if turn:
                for inner in self.inner:
                    inner.forget()
            self.value = value
            yield value
        # Past the end, so that an interruption after the loop does not enter its last turn again.
        self.value = values[-1] + values.step if len(values) else self.value
