"""What became of steps that were trained again: reports/NNNN-retrained-RRRRR.json, a file for each life and rank
that tells.

Law: rank 0 tells how many steps were compared; other ranks only what differs. Whoever differs first says so in the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoresume.format import names

log = logging.getLogger("autoresume")


COMPONENTS = ("batch", "loss", "option", "generator", "state", "metric")
"""Of a step, what leads to the rest first."""


@dataclass(frozen=True)
class Retrained:
    """The steps `first` to `last` of life `before` were made again in `life`; `difference` is None if all were the
    same."""

    life: int
    rank: int
    before: int
    first: int
    last: int
    difference: dict[str, Any] | None = None
    """step, component, words, and the likely cause, why, remedy; `expected`: what has changed since, if anything."""

    @property
    def steps(self) -> str:
        return f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"

    @property
    def is_fault(self) -> bool:
        """They differ, and nothing that the script is made of has changed."""
        return self.difference is not None and not self.difference.get("expected")

    def words(self) -> str:
        if self.difference is None:
            return f"{self.steps}, trained again, came out bit for bit as in life {self.before}"
        return f"step {self.difference['step']}, trained again: {self.difference['words']}"


def write(folder: Path, told: Retrained) -> None:
    """Never raises for the disk's sake."""
    path = folder / names.retrained_file(told.life, told.rank)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(told)) + "\n")
        temporary.replace(path)


def read(folder: Path) -> list[Retrained]:
    """Of each life the first difference, else what rank 0 told; oldest first."""
    found: dict[int, Retrained] = {}
    for told in _all(folder):
        known = found.get(told.life)
        if known is None or _weight(told) < _weight(known):
            found[told.life] = told
    return [found[life] for life in sorted(found)]


def summary(told: Iterable[Retrained]) -> str | None:
    """A sentence about a whole run; None where no step was trained again."""
    known = list(told)
    differ = [one for one in known if one.is_fault]
    if differ:
        return f"in life {differ[0].life} {differ[0].words()}"
    same = [one for one in known if one.difference is None]
    steps = sum(one.last - one.first + 1 for one in same)
    count = "1 step was" if steps == 1 else f"{steps} steps were"
    return f"{count} trained again after crashes, and came out bit for bit the same" if steps else None


def _weight(told: Retrained) -> tuple[Any, ...]:
    if told.difference is None:
        return (1, told.rank)
    order = [*COMPONENTS, told.difference["component"]]
    return (0, told.difference["step"], order.index(told.difference["component"]), told.rank)


def _all(folder: Path) -> list[Retrained]:
    found = []
    with contextlib.suppress(OSError):  # a folder that is not ours to read, say
        for path in sorted((folder / names.REPORTS).glob(names.RETRAINED_PATTERN)):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(Retrained(**json.loads(path.read_text())))
    return found
