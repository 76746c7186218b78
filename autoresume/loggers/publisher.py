"""Feeds the loggers from the journal, in a thread of its own.

Law: training hands over a record and goes on; a logger that is slow or fails costs it nothing. What a
logger missed (because it failed, or the process was killed) it gets from the journal at the next start.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from autoresume.errors import UsageError
from autoresume.loggers import journal
from autoresume.loggers.base import Record, RunInfo, RunLogger

log = logging.getLogger("autoresume")

_BATCH = 512


def known_loggers() -> list[str]:
    return sorted({point.name for point in entry_points(group="autoresume.loggers")})


def make_logger(name: str) -> RunLogger:
    """The logger with that name. Raises UsageError listing what is installed."""
    for point in entry_points(group="autoresume.loggers"):
        if point.name == name:
            try:
                made: RunLogger = point.load()()
            except ImportError as error:
                raise UsageError(
                    f"the logger {name!r} needs a package that is not installed ({error}): "
                    f"pip install 'autoresume-hpc[{name}]'"
                ) from error
            return made
    raise UsageError(f"unknown logger {name!r}; installed are {', '.join(known_loggers()) or 'none'}")


class Publisher:
    """All loggers of a run. Only rank 0 has one."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises UsageError for a logger that is not there."""
        self._loggers: dict[str, RunLogger] = {name: make_logger(name) for name in names}
        self._queue: queue.SimpleQueue[Record | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._finished = False

    def open(
        self, run_id: str, name: str, folder: Path, identities: dict[str, dict[str, str]], step: int
    ) -> dict[str, dict[str, str]]:
        """Open all loggers at `step`, feed them what they miss, and start the thread. Returns their identities."""
        path = folder / "metrics.jsonl"
        for key, logger in list(self._loggers.items()):
            try:
                held, identity = logger.open(RunInfo(run_id, name, folder, identities.get(key, {})), step)
                identities[key] = dict(identity)
                missing = list(journal.read(path, after=held))
                if missing:
                    logger.write(missing)
            except Exception as error:  # noqa: BLE001  (other people's code: its failure may not end the training)
                self._switch_off(key, error)
        if self._loggers:
            self._thread = threading.Thread(target=self._work, name="autoresume-loggers", daemon=True)
            self._thread.start()
        return identities

    def put(self, record: Record) -> None:
        if self._thread is not None:
            self._queue.put(record)

    def close(self, finished: bool, patience_seconds: float = 10.0) -> None:
        if self._thread is not None:
            self._finished = finished
            self._queue.put(None)
            self._thread.join(patience_seconds)
            self._thread = None

    def _work(self) -> None:
        while True:
            batch, last = self._take()
            for key, logger in list(self._loggers.items()):
                try:
                    if batch:
                        logger.write(batch)
                    if last:
                        logger.flush()
                        logger.close(self._finished)
                except Exception as error:  # noqa: BLE001  (as above)
                    self._switch_off(key, error)
            if last:
                return

    def _take(self) -> tuple[list[Record], bool]:
        batch: list[Record] = []
        item = self._queue.get()
        while isinstance(item, Record):
            batch.append(item)
            if len(batch) >= _BATCH or self._queue.empty():
                return batch, False
            item = self._queue.get()
        return batch, True

    def _switch_off(self, key: str, error: Exception) -> None:
        log.warning(
            "the logger %r failed (%s: %s) and is switched off; metrics.jsonl keeps every value, and the next start "
            "feeds what it misses",
            key,
            type(error).__name__,
            error,
        )
        self._loggers.pop(key, None)
