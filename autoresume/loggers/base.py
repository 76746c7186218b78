"""The seam between the metric journal and the tools that show metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Value = float | int | bool | str | None


@dataclass(frozen=True)
class Record:
    """What was logged at one step. `time` in seconds since 1970."""

    step: int
    time: float
    values: Mapping[str, Value]


@dataclass(frozen=True)
class RunInfo:
    """What a logger is told of the run."""

    run_id: str
    name: str
    folder: Path
    """The run directory; a logger that writes files writes them into a folder of its own below it."""
    identity: Mapping[str, str]
    """What this logger returned from `open` at the run's earlier incarnations; empty at first."""


class RunLogger(Protocol):
    """An adapter. Only rank 0 has one. Found by entry point in the group "autoresume.loggers".

    A logger that raises is switched off with a warning; the journal keeps every value, and the next
    incarnation feeds what is missing. Training never waits for a logger and never fails by it.
    """

    def open(self, run: RunInfo, resumed_step: int) -> tuple[int, Mapping[str, str]]:
        """Go on in the same run after `resumed_step`: whatever is newer must not be seen any more.

        Returns the last step (at most `resumed_step`) that it already holds, and its identity.
        """

    def write(self, records: Sequence[Record]) -> None:
        """Take records, in order of steps, each step once."""

    def flush(self) -> None:
        """Hand over what was taken, as far as the tool can."""

    def close(self, finished: bool) -> None:
        """The incarnation ends; `finished` tells whether the run does, too."""
