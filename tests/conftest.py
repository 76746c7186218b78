"""At the end of the suite: what the torture chamber did, over all of it."""

from __future__ import annotations

from collections import Counter
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    told: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        if report.when == "call":
            told.update({name[8:]: value for name, value in report.user_properties if name.startswith("torture ")})
    if told:
        terminalreporter.write_sep("-", "torture chamber")
        terminalreporter.write_line(", ".join(f"{value:,} {name}" for name, value in sorted(told.items())))
