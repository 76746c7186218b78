"""Of the whole suite: in which order, and what the torture chamber did."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Jobs on Slurm mostly wait: two workers (of four, each of which gets a quarter) begin with half of them each, while the
    others compute."""
    waiting = [item for item in items if {"slurm_jobs", "slurm_cluster"} & set(Path(item.path).parts)]
    held = set(waiting)
    others = [item for item in items if item not in held]
    first, second = waiting[::2], waiting[1::2]
    middle = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *others[:middle], *second, *others[middle:]]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    told: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        if report.when == "call":
            told.update({name[8:]: value for name, value in report.user_properties if name.startswith("torture ")})
    if told:
        terminalreporter.write_sep("-", "torture chamber")
        terminalreporter.write_line(", ".join(f"{value:,} {name}" for name, value in sorted(told.items())))
