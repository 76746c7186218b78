"""metrics.jsonl: the truth that all loggers are fed from.

Law: one line for each call of `run.log`, with its step, in order. After a restore the journal is cut
back to the restored step, so that each step is there exactly once however often the run was killed.
A torn last line is no line. A disk that is full or fails never reaches the training: lines wait in
memory, in their order, until they can be written.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoresume.loggers.base import Record, Value

log = logging.getLogger("autoresume")

_VISIBLE_SECONDS = 1.0
_ENCODER = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one for each line
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Written as {"float": "nan"}: JSON has no word for them, and a text may be called nan."""


class Journal:
    """The journal of one run, open for appending. Only rank 0 has one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._records: list[Record] = []
        self._waiting = bytearray()
        self._failed = False
        self._flushed = 0.0

    def truncate(self, step: int) -> int | None:
        """Forget everything after `step`; the last step that was there before, or None. Durable when it returns."""
        last: int | None = None
        try:
            file = open(self.path, "r+b")
        except FileNotFoundError:
            return None
        with file:
            keep, after = 0, False
            for line in file:
                record = _parse(line)
                if record is None:
                    break
                last = record.step
                # Steps never decrease in a file that nobody changed: read on for `last` only.
                after = after or record.step > step
                keep += 0 if after else len(line)
            file.truncate(keep)
            file.flush()
            os.fsync(file.fileno())
        return last

    def append(self, step: int, values: dict[str, Any], when: float | None = None) -> Record:
        """Write one line; others can read it a second later. Raises TypeError for what is no plain value."""
        record = Record(step, when or time.time(), {name: to_plain(name, value) for name, value in values.items()})
        self._records.append(record)
        if record.time - self._flushed > _VISIBLE_SECONDS:
            self._flushed = record.time
            self.flush()
        return record

    def _encode(self) -> None:
        """Many at a time: a step waits for less than a line of its own."""
        for record in self._records:
            values = {name: _written(value) for name, value in record.values.items()}
            written = {"step": record.step, "time": record.time, "values": values}
            self._waiting += _ENCODER.encode(written).encode() + b"\n"
        self._records.clear()

    def flush(self) -> bool:
        """Hand the lines to the operating system: they survive this process. (A checkpoint makes them durable.)

        False if that is not possible now; they wait then, and are written with the next.
        """
        self._encode()
        try:
            while self._waiting:
                # What was written, be it half a line, is gone from here: nothing is written twice.
                del self._waiting[: os.write(self._open(), self._waiting)]
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.warning(
                    "metrics can't be written to %s: %s; training goes on, and they wait in memory until they can be",
                    self.path,
                    error.strerror or error,
                )
            return False
        if self._failed:
            self._failed = False
            log.info("metrics are written to %s again; none was lost", self.path)
        return True

    @property
    def bytes(self) -> int:
        """How long the file is when everything is written."""
        self._encode()
        try:
            return os.path.getsize(self.path) + len(self._waiting)
        except FileNotFoundError:
            return len(self._waiting)

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        return self._descriptor

    def close(self) -> None:
        if not self.flush():
            log.warning(
                "the last %d bytes of metrics could not be written to %s; a run that goes on from its last checkpoint "
                "logs them again",
                len(self._waiting),
                self.path,
            )
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read(path: Path, after: int = -1) -> Iterator[Record]:
    """All records with a greater step than `after`."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            record = _parse(line)
            if record is None:
                return
            if record.step > after:
                yield record


def _parse(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
        values = {k: _NOT_FINITE[v["float"]] if isinstance(v, dict) else v for k, v in value["values"].items()}
        return Record(int(value["step"]), float(value["time"]), values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _written(value: Value) -> Any:
    return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def to_plain(name: str, value: Any) -> Value:
    """A value that is logged, as the plain one that it is. Raises TypeError."""
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[no-any-return]
    for kind in (int, float, str):
        if isinstance(value, kind):  # numpy's float64 is a float, and an enum may be a number: the plain value counts
            return kind(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 1) != 0:
        try:
            found = item()  # a tensor or array of one element; waits for the device
        except (ValueError, RuntimeError):
            found = None
        if isinstance(found, (bool, int, float)):
            return found
    raise TypeError(
        f"run.log({name}=...) takes numbers, strings and tensors of one element, not a {type(value).__name__}"
    )
