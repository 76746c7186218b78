"""What the ranks wrote down: the lines of each step, over all lives of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Line = dict[str, Any]


@dataclass
class Trajectory:
    """One run. `steps[rank][step]` are the lines of that step, one for each life that made it, oldest first."""

    steps: dict[int, dict[int, list[Line]]] = field(default_factory=dict)
    begins: dict[int, list[Line]] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        return max((max(steps, default=0) for steps in self.steps.values()), default=0)

    def line(self, rank: int, step: int) -> Line | None:
        """The one that counts: of the last life that made the step."""
        lines = self.steps.get(rank, {}).get(step)
        return lines[-1] if lines else None

    def first_of_life(self, rank: int, life: int) -> Line | None:
        lines = [line for each in self.steps.get(rank, {}).values() for line in each if line["life"] == life]
        return min(lines, key=lambda line: int(line["step"]), default=None)

    @property
    def evaluates(self) -> bool:
        return any(line["evaluations"] for steps in self.steps.values() for lines in steps.values() for line in lines)


def read(folder: Path) -> Trajectory:
    """All ranks' records. A torn line is none."""
    found = Trajectory()
    for path in sorted(folder.glob("rank-*.jsonl")):
        rank = int(path.stem.removeprefix("rank-"))
        steps, begins = found.steps.setdefault(rank, {}), found.begins.setdefault(rank, [])
        for line in _lines(path):
            if line["kind"] == "begin":
                begins.append(line)
            else:
                steps.setdefault(int(line["step"]), []).append(line)
    return found


def _lines(path: Path) -> Iterator[Line]:
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line:
            yield line
