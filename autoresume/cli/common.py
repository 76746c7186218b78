"""What the commands share: finding a run, sizes and ages in words, tables and JSON."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.committed import committed_checkpoints
from autoresume.checkpoint.discover import list_checkpoints
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.checkpoint.select import select
from autoresume.config import restore_request
from autoresume.config.restore_request import RestoreRequest
from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.restore.origins import best_metric_of
from autoresume.storage.local import LocalStorage

_SILENT_SECONDS = 45.0
_LONG_TABLE = 200
"""Rows."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def open_run(folder: str) -> tuple[LocalStorage, str]:
    """A run's storage and id. Raises UsageError, naming runs nearby, if `folder` is none.

    One that was submitted, and has not been started yet, is a run without an id; so is the folder of an array.
    """
    storage = LocalStorage(folder)
    try:
        return storage, str(json.loads(storage.read(names.RUN))["run_id"])
    except FileNotFoundError:
        if storage.list(names.SUBMISSIONS):
            return storage, ""
        near = sorted(str(path.parent) for path in Path(folder).parent.glob(f"*/{names.RUN}"))[:5]
        near += sorted(str(path.parent) for path in Path(folder).glob(f"*/{names.RUN}"))[:5]
        hint = f" Runs nearby: {', '.join(dict.fromkeys(near))}." if near else ""
        raise UsageError(f"{folder} is no run directory: it holds no {names.RUN}.{hint}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}/{names.RUN} is damaged: {error}") from error


def tasks_of(folder: str) -> list[LocalStorage]:
    """The runs of an array's tasks, if `folder` is that of an array."""
    return [LocalStorage(path.parent) for path in sorted(Path(folder).glob(f"task-*/{names.RUN}"))]


def lives(storage: LocalStorage, record: Incarnation) -> bool:
    """By its processes here, else by its heartbeat: without waiting for the next one."""
    if record.boot == incarnation.boot_id():
        return any(incarnation.process_lives(pid, started) for pid, started in record.processes)
    try:
        beat = float(storage.read(names.heartbeat_file(record.number)))
    except (OSError, ValueError):
        return False
    return time.time() - beat < _SILENT_SECONDS


def pick(storage: LocalStorage, text: str) -> CheckpointName:
    """A checkpoint by its name, or as `restore.select` has it. Raises UsageError listing what there is."""
    there = list_checkpoints(storage)
    by_name = [name for name in there if str(name) == text or str(name.step) == text.removeprefix("U")]
    if by_name:
        return by_name[0]  # also one that was never committed, or is damaged
    committed = committed_checkpoints(storage)
    if text == "latest" and not committed and there:
        return there[0]
    return select(text, committed, best_metric_of(storage), str(storage.root)).name


def restore_options(function: Callable[..., None]) -> Callable[..., None]:
    """`--restore.mode` and the other words of `restore`, as options of a command."""
    for word in reversed(restore_request.FIELDS):
        function = click.option(f"--restore.{word}", f"restore_{word}", metavar="...", help=_RESTORE[word])(function)
    return function


_RESTORE = {
    "mode": "What a new run takes over: finetune, hotstart or continue (docs/restore.md).",
    "from": "From where: a run's folder or id, a checkpoint's folder, a file, a URL.",
    "select": "Which checkpoint: latest, best, best.METRIC, E3, U1200, S38400, a tag.",
    "stage": "Which stage of it.",
    "strict": "false, or NAME=false: what doesn't fit may begin anew.",
    "fresh": "What stays as the script makes it: scheduler, optimizer.lr, model.head.*.",
    "rename": "PATTERN=REPLACEMENT,...: stored keys written anew.",
    "remove": "Stored keys that are left out.",
    "weights": "NAME=STORED,...: whose weights a model gets, e.g. model=ema.",
}


def restore_variables(given: dict[str, str | None]) -> dict[str, str]:
    """The environment that says the same. Raises UsageError for what makes no sense."""
    said = {word: value for word in restore_request.FIELDS if (value := given.get(f"restore_{word}")) is not None}
    RestoreRequest(**restore_request.merge_request(None, said, "the command line"))
    return {restore_request.variable_name(word): value for word, value in said.items()}


def size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def bytes_of(option: str, text: str) -> int:
    """A size that a person wrote as `option`. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if not match or match.group(2) not in _UNITS or float(match.group(1)) == 0:
        raise UsageError(f"{option} {text!r}: give a size, e.g. 800MB, 1.5GB or 2GiB")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def age(moment: float | None) -> str:
    if moment is None:
        return ""
    seconds = max(0.0, time.time() - moment)
    for limit, unit, length in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def seconds_in_words(seconds: float) -> str:
    """Such as 90 s, 12 min, 3.5 h, 2.1 d."""
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{max(0.0, seconds) / length:.{0 if length < 3600 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def emit(as_json: bool, rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]], title: str) -> None:
    """Rows as JSON lines for programs, or as a table. `columns` are (key, heading)."""
    if as_json:
        for row in rows:
            sys.stdout.write(json.dumps(row, default=str) + "\n")
        return
    if len(rows) > _LONG_TABLE:
        sys.stdout.write(f"{title}\n{_plain_table(rows, columns)}\n")
        return
    table = Table(title=title, title_justify="left")
    for _, heading in columns:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in _cells(row, columns)))
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False).print(table)


def _cells(row: dict[str, Any], columns: Sequence[tuple[str, str]]) -> list[str]:
    return ["" if row.get(key) is None else str(row[key]) for key, _ in columns]


def _plain_table(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]]) -> str:
    """Without frames, and not folded: a nice table takes about a millisecond for each row."""
    lines = [[heading for _, heading in columns], *(_cells(row, columns) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
