"""CSV: `<run>/metrics.csv`, a row for each step, a column for each metric.

Law: rows after the restored step are cut away. A metric that comes later gets a column: the file is written anew, under
its name only when it is whole.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from autoresume.loggers.base import Record, RunInfo, by_step

_FIXED = ["step", "time"]


class CsvLogger:
    """`handle` is the file's path."""

    def __init__(self) -> None:
        self.handle = Path()
        self._columns: list[str] = []
        self._file: TextIO | None = None

    def open(self, run: RunInfo, resumed_step: int) -> tuple[int, Mapping[str, str]]:
        self.handle = run.folder / "metrics.csv"
        rows = self._read()
        kept = [row for row in rows if int(row["step"]) <= resumed_step]
        self._columns = list(dict.fromkeys([*_FIXED, *(kept[0] if kept else ())]))
        self._write_anew(kept)
        held = int(kept[-1]["step"]) if kept else -1
        return held, {"path": str(self.handle)}

    def _read(self) -> list[dict[str, str]]:
        """All whole rows."""
        try:
            with open(self.handle, newline="") as file:
                text = file.read()
        except FileNotFoundError:
            return []
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            del lines[-1]  # torn by a kill
        return [row for row in csv.DictReader(lines) if (row.get("step") or "").isdigit()]

    def _write_anew(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._file is not None:
            self._file.close()
        temporary = self.handle.with_suffix(".csv.tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.handle)
        self._file = open(self.handle, "a", newline="")

    def write(self, records: Sequence[Record]) -> None:
        rows = [{"step": one.step, "time": one.time, **one.values} for one in by_step(records)]
        new = [name for row in rows for name in row if name not in self._columns]
        if new:
            self.flush()
            before = self._read()
            self._columns = list(dict.fromkeys([*self._columns, *new]))
            self._write_anew(before)
        assert self._file is not None
        csv.DictWriter(self._file, self._columns, restval="").writerows(rows)
        self._file.flush()

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self, how: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
