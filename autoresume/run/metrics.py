"""`run.log`: rank 0's journal of metrics, and the loggers that are fed from it.

Law: the journal is the truth. It is cut back to the restored step before anything is logged, so that
each step is there once; it is flushed before a checkpoint that belongs to it is taken. What a device has still to
compute is waited for only then; what is logged behind it is written behind it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoresume.format import names
from autoresume.format.part import Labels
from autoresume.loggers.base import RunInfo
from autoresume.loggers.journal import Journal, to_plain
from autoresume.loggers.publisher import Publisher
from autoresume.run.resources import Resources
from autoresume.snapshot.pending_number import PendingNumber

log = logging.getLogger("autoresume")


class Metrics:
    """Does nothing on ranks other than 0, and before `open`."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._journal: Journal | None = None
        self._publisher: Publisher | None = None
        self._last: dict[str, Any] = {}
        self._pending: deque[tuple[int, float, dict[str, Any]]] = deque()
        """Step, time and values of what was logged and is not in the journal yet."""

    @property
    def last(self) -> dict[str, float]:
        """The value that each metric had last, of those that are finite numbers."""
        found = {name: value for name, value in self._last.items() if type(value) in (int, float)}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def open(self, step: int, labels: Labels | None = None, config: Mapping[str, Any] | None = None) -> None:
        """Rank 0, restored at `step`: whatever was logged after it is cut away. `labels` are the checkpoint's, `config`
        are the run's settings."""
        resources = self._resources
        if resources.ranks.rank != 0:
            return
        self._last = dict(labels.metrics) if labels is not None else {}
        self._journal = Journal(resources.folder / names.JOURNAL)
        resources.record.note_end_of_previous(self._journal.truncate(step))
        if resources.options.loggers:
            self._publisher = Publisher(resources.options.loggers, resources.options.publish == "live")
            parent = resources.run_file.parent()
            info = RunInfo(
                run_id=resources.run_id,
                name=resources.folder.name,
                folder=resources.folder,
                identity={},
                origin=str(parent.get("origin", "")),
                config=config or {},
            )
            loggers = dict(parent.get("loggers") or {})
            self._publisher.open(info, resources.run_file.read_loggers(), loggers, step, self._write_loggers)

    def _write_loggers(self, identities: Mapping[str, Mapping[str, str]]) -> None:
        """Raises StaleIncarnation: a logger may be opened late, when another life goes on already."""
        self._resources.guard()
        self._resources.run_file.write_loggers(identities)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Raises TypeError for what is no plain value."""
        if self._journal is None:
            return
        found = {name: PendingNumber.of(value) or to_plain(name, value) for name, value in values.items()}
        self._pending.append((step, time.time(), found))
        self.write_ready()

    def write_ready(self) -> None:
        """Write what is there by now."""
        while self._pending and all(
            value.is_ready() for value in self._pending[0][2].values() if isinstance(value, PendingNumber)
        ):
            self._write()

    def _write(self) -> None:
        assert self._journal is not None
        step, when, found = self._pending[0]
        values = {name: value.value() if isinstance(value, PendingNumber) else value for name, value in found.items()}
        self._pending.popleft()
        record = self._journal.append(step, values, when)
        self._last.update(record.values)
        if self._publisher is not None:
            self._publisher.put(record)

    def flush(self) -> int:
        """How long the journal is, with the lines that could not be written yet, if there are any."""
        if self._journal is None:
            return 0
        while self._pending:
            self._write()
        self._journal.flush()
        return self._journal.bytes

    def saving(self, step: int, manifest: Path) -> None:
        """A checkpoint of `step` was asked for, which is committed when `manifest` is there."""
        if self._publisher is not None:
            self._publisher.saving(step, manifest)

    def logger_object(self, name: str) -> Any:
        """The logger's own object; None on other ranks than 0. Raises UsageError."""
        return self._publisher.handle(name) if self._publisher is not None else None

    def close(self, how: str) -> None:
        if self._journal is not None:
            try:
                self.flush()
            except RuntimeError as error:  # CUDA's, which has ended the training, too
                log.warning(
                    "the metrics of %d calls of run.log are lost with the device: %s", len(self._pending), error
                )
            self._journal.close()
        if self._publisher is not None:
            self._publisher.close(how)
