"""Of the whole suite: in which order, and what the torture chamber did."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Jobs on Slurm first: they mostly wait, and one worker waits for them while the others compute."""
    items.sort(key=lambda item: not any(part.startswith("slurm_") for part in Path(item.path).parts))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    told: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        if report.when == "call":
            told.update({name[8:]: value for name, value in report.user_properties if name.startswith("torture ")})
    if told:
        terminalreporter.write_sep("-", "torture chamber")
        terminalreporter.write_line(", ".join(f"{value:,} {name}" for name, value in sorted(told.items())))
