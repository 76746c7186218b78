"""What the commands share: finding a run, sizes and ages in words, tables and JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.storage.local import LocalStorage


def open_run(folder: str) -> tuple[LocalStorage, str]:
    """A run's storage and id. Raises UsageError, naming runs nearby, if `folder` is none."""
    storage = LocalStorage(folder)
    try:
        return storage, str(json.loads(storage.read(names.RUN))["run_id"])
    except FileNotFoundError:
        near = sorted(str(path.parent) for path in Path(folder).parent.glob(f"*/{names.RUN}"))[:5]
        near += sorted(str(path.parent) for path in Path(folder).glob(f"*/{names.RUN}"))[:5]
        hint = f" Runs nearby: {', '.join(dict.fromkeys(near))}." if near else ""
        raise UsageError(f"{folder} is no run directory: it holds no {names.RUN}.{hint}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}/{names.RUN} is damaged: {error}") from error


def pick(storage: LocalStorage, text: str) -> CheckpointName:
    """A checkpoint by its name, or by its step. Raises UsageError listing what there is."""
    from autoresume.checkpoint.discover import listing

    there = listing(storage)
    found = [name for name in there if str(name) == text or str(name.step) == text.removeprefix("U")]
    if text == "latest":
        found = [name for name in there if storage.size(name.manifest) is not None] or there
    if not found:
        known = ", ".join(str(name) for name in there[:8]) or "none"
        raise UsageError(f"there is no checkpoint {text!r} in {storage.root}; there are: {known}")
    return found[0]


def size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def age(moment: float | None) -> str:
    if moment is None:
        return ""
    seconds = max(0.0, time.time() - moment)
    for limit, unit, length in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def emit(as_json: bool, rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]], title: str) -> None:
    """Rows as JSON lines for programs, or as a table. `columns` are (key, heading)."""
    if as_json:
        for row in rows:
            sys.stdout.write(json.dumps(row, default=str) + "\n")
        return
    table = Table(title=title, title_justify="left")
    for _, heading in columns:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if row.get(key) is None else str(row[key])) for key, _ in columns))
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False).print(table)
