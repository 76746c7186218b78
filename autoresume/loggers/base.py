"""The seam between the metric journal and the tools that show metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
    parent: Mapping[str, str] = field(default_factory=dict)
    """What this logger called the run that this one began from; empty where there is none."""
    origin: str = ""
    """How the run began, in words, such as "finetune of runs/base, E3_U120_S960-0001 (the latest)"."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The run's settings, by dotted names."""


class RunLogger(Protocol):
    """An adapter. Only rank 0 has one. Found by entry point in the group "autoresume.loggers".

    All calls come from one thread, which is not the training's. A logger that raises is closed and opened again later,
    and then gets from the journal what it misses; training never waits for a logger and never fails by it. A step comes
    as a whole: all its records in one `write`.

    An adapter may have an attribute `irrevocable = True`: what it was given can't be taken back. It is then given
    only steps that a committed checkpoint knows, unless the option `publish` is "live". It may have an attribute
    `handle`: the tool's own object, for `run.logger(name)`.
    """

    def open(self, run: RunInfo, resumed_step: int) -> tuple[int, Mapping[str, str]]:
        """Go on in the same run after `resumed_step`: whatever is newer must not be seen any more.

        Returns the last step (at most `resumed_step`) that it already holds, and its identity.
        """

    def write(self, records: Sequence[Record]) -> None:
        """Take records, in order of steps, each step once."""

    def flush(self) -> None:
        """Hand over what was taken, as far as the tool can."""

    def close(self, how: str) -> None:
        """The incarnation ends: finished (and with it the run), interrupted, failed, or ended."""


def by_step(records: Sequence[Record]) -> list[Record]:
    """One record for each step, with all that was logged in it."""
    merged: dict[int, Record] = {}
    for record in records:
        before = merged.get(record.step)
        values = {**before.values, **record.values} if before is not None else record.values
        merged[record.step] = Record(record.step, record.time, values)
    return list(merged.values())
