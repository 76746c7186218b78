"""`run.log`: rank 0's journal of metrics, and the loggers that are fed from it.

Law: the journal is the truth. It is cut back to the restored step before anything is logged, so that
each step is there once; it is flushed before a checkpoint that belongs to it is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoresume.format import names
from autoresume.format.manifest import Labels
from autoresume.loggers.base import RunInfo
from autoresume.loggers.journal import Journal
from autoresume.loggers.publisher import Publisher
from autoresume.session import Session


class Metrics:
    """Does nothing on ranks other than 0, and before `open`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._journal: Journal | None = None
        self._publisher: Publisher | None = None
        self._last: dict[str, Any] = {}

    @property
    def last(self) -> dict[str, float]:
        """The value that each metric had last, of those that are finite numbers."""
        found = {name: value for name, value in self._last.items() if type(value) in (int, float)}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def open(self, step: int, labels: Labels | None = None, config: Mapping[str, Any] | None = None) -> None:
        """Rank 0, restored at `step`: whatever was logged after it is cut away. `labels` are the checkpoint's, `config`
        are the run's settings."""
        session = self._session
        if session.ranks.rank != 0:
            return
        self._last = dict(labels.metrics) if labels is not None else {}
        self._journal = Journal(session.folder / names.JOURNAL)
        session.bury_previous(self._journal.cut(step))
        if session.options.loggers:
            self._publisher = Publisher(session.options.loggers, session.options.publish == "live")
            parent = session.parent()
            info = RunInfo(
                run_id=session.run_id,
                name=session.folder.name,
                folder=session.folder,
                identity={},
                origin=str(parent.get("origin", "")),
                config=config or {},
            )
            loggers = dict(parent.get("loggers") or {})
            self._publisher.open(info, session.identities(), loggers, step, session.remember_identities)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._journal is not None:
            record = self._journal.append(step, dict(values))
            self._last.update(record.values)
            if self._publisher is not None:
                self._publisher.put(record)

    def flush(self) -> int:
        """How long the journal is, with the lines that could not be written yet, if there are any."""
        if self._journal is None:
            return 0
        self._journal.flush()
        return self._journal.bytes

    def saving(self, step: int, manifest: Path) -> None:
        """A checkpoint of `step` was asked for, which is committed when `manifest` is there."""
        if self._publisher is not None:
            self._publisher.saving(step, manifest)

    def handle(self, name: str) -> Any:
        """The logger's own object; None on other ranks than 0. Raises UsageError."""
        return self._publisher.handle(name) if self._publisher is not None else None

    def close(self, how: str) -> None:
        if self._journal is not None:
            self._journal.close()
        if self._publisher is not None:
            self._publisher.close(how)
