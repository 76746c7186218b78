"""Feeds the loggers from the journal, in a thread of its own.

Law: training hands over a record and goes on; a logger that is slow, hangs or fails costs it nothing. What a logger
missed (because it failed, came late, or the process was killed) it gets from the journal. A logger whose past can't be
taken back gets only what a committed checkpoint knows: nothing that might be trained again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from autoresume.errors import UsageError
from autoresume.loggers import journal
from autoresume.loggers.base import Record, RunInfo, RunLogger

log = logging.getLogger("autoresume")

_LOOK_SECONDS = 1.0
"""Whether a save has been committed is looked at so often, while one is awaited."""
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 5.0, 300.0
_MOST_IN_MEMORY = 100_000
"""Records that wait for a logger; more of them are read from the journal again."""
_HANDLE_SECONDS = 60.0
_PATIENCE_SECONDS = {"finished": 60.0, "else": 10.0}


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


class _Saving:
    """A checkpoint that was asked for: once its manifest is there, what was logged up to its step is final."""

    def __init__(self, step: int, manifest: Path) -> None:
        self.step, self.manifest = step, manifest


class _Fed:
    """One logger, and what waits for it."""

    def __init__(self, name: str, logger: RunLogger, live: bool) -> None:
        self.name = name
        self.logger: RunLogger | None = logger
        self.waits = not live and bool(getattr(logger, "irrevocable", False))
        self.waiting: deque[Record] = deque()
        self.read = (-1, 0.0)
        """Step and time of the last record that was read from the journal; the queue may bring it, too."""
        self.published = -1
        """The last step that it holds, once it is open."""
        self.is_open = self.is_behind = self.is_closed = False
        self.retry_at = 0.0
        self.retry_seconds = _FIRST_RETRY_SECONDS
        self.opened = threading.Event()


class Publisher:
    """All loggers of a run. Only rank 0 has one."""

    def __init__(self, names: Sequence[str], live: bool = False) -> None:
        """Raises UsageError for a logger that is not there. `live`: nothing waits for a commit."""
        self._fed = [_Fed(name, make_logger(name), live) for name in names]
        self._queue: queue.SimpleQueue[Record | _Saving | str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._savings: list[_Saving] = []

    def open(
        self,
        info: RunInfo,
        identities: Mapping[str, Mapping[str, str]],
        parents: Mapping[str, Mapping[str, str]],
        step: int,
        remember: Callable[[Mapping[str, Mapping[str, str]]], None],
    ) -> None:
        """Start the thread, which opens all loggers at `step`, feeds them what they miss, and has their identities
        remembered. `info` is what they all are told."""
        self._info, self._parents, self._remember = info, parents, remember
        self._identities = {key: dict(value) for key, value in identities.items()}
        self._resumed = self._final = self._newest = step
        if self._fed:
            self._thread = threading.Thread(target=self._work, name="autoresume-loggers", daemon=True)
            self._thread.start()

    def put(self, record: Record) -> None:
        if self._thread is not None:
            self._queue.put(record)

    def saving(self, step: int, manifest: Path) -> None:
        """A checkpoint of `step` was asked for; it is committed when `manifest` is there."""
        if self._thread is not None:
            self._queue.put(_Saving(step, manifest))

    def handle(self, name: str) -> Any:
        """The tool's own object; waits until it is open. None if it can't be opened. Raises UsageError."""
        fed = next((one for one in self._fed if one.name == name), None)
        if fed is None:
            raise UsageError(f"this run has no logger {name!r}; it has {', '.join(one.name for one in self._fed)}")
        fed.opened.wait(_HANDLE_SECONDS)
        return getattr(fed.logger, "handle", None) if fed.is_open else None

    def close(self, how: str, patience_seconds: float | None = None) -> list[str]:
        """End this life, and wait until the loggers have taken everything: longer where no other life comes after it.

        The names of those that have not.
        """
        if self._thread is None:
            return []
        if patience_seconds is None:
            patience_seconds = _PATIENCE_SECONDS["finished" if how == "finished" else "else"]
        self._queue.put(how)
        self._thread.join(patience_seconds)
        self._thread = None
        missing = [fed.name for fed in self._fed if not fed.is_closed]
        if missing:
            what = "`autoresume publish RUN` gives them" if how == "finished" else "the next start gives them"
            log.warning("%s did not take everything in time: %s what they miss", ", ".join(missing), what)
        return missing

    # -- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        how = ""
        while not how:
            for fed in self._fed:
                if not fed.is_open and time.monotonic() >= fed.retry_at:
                    self._try(fed, self._open)
                    fed.is_behind = fed.is_open
            how = self._take()
            self._look()
            if how == "finished":
                self._final = self._newest
            whole = self._newest if how else self._newest - 1  # more may be logged in the newest step
            for fed in self._fed:
                if how and not fed.is_open:
                    self._try(fed, self._open)
                if fed.is_open:
                    self._try(fed, self._feed, whole)
        for fed in self._fed:
            if fed.is_open:
                self._try(fed, self._end, how)

    def _take(self) -> str:
        """Wait for something, and take all that is there; how this life ended, once it has."""
        item = self._next()
        while item is not None:
            if isinstance(item, str):
                return item
            if isinstance(item, _Saving):
                self._savings.append(item)
            else:
                self._newest = max(self._newest, item.step)
                for fed in self._fed:
                    if (item.step, item.time) > fed.read:
                        fed.waiting.append(item)
                    if len(fed.waiting) > _MOST_IN_MEMORY and not fed.is_open:
                        fed.waiting.popleft()
            if self._queue.empty():
                return ""
            item = self._queue.get()
        return ""

    def _next(self) -> Record | _Saving | str | None:
        """What comes next; None where something is to be looked at before."""
        waits = [fed.retry_at - time.monotonic() for fed in self._fed if not fed.is_open]
        waits += [0.0 for fed in self._fed if fed.is_behind]  # what was read from the journal is given first
        if self._savings:
            waits.append(_LOOK_SECONDS)
        try:
            return self._queue.get(timeout=max(0.001, min(waits))) if waits else self._queue.get()
        except queue.Empty:
            return None

    def _look(self) -> None:
        """Which saves have been committed by now."""
        done = [one for one in self._savings if one.manifest.exists()]
        if done:
            self._final = max(self._final, *(one.step for one in done))
            self._savings = [one for one in self._savings if one.step > self._final]

    def _open(self, fed: _Fed) -> None:
        if fed.logger is None:
            fed.logger = make_logger(fed.name)
        known = max(self._resumed, fed.published)
        identity, parent = self._identities.get(fed.name, {}), self._parents.get(fed.name, {})
        info = RunInfo(**{**vars(self._info), "identity": identity, "parent": parent})
        held, found = fed.logger.open(info, known)
        fed.published, fed.is_open, fed.retry_seconds = held, True, _FIRST_RETRY_SECONDS
        fed.opened.set()
        self._identities[fed.name] = dict(found)
        self._remember(self._identities)
        missed = list(journal.read(self._info.folder / "metrics.jsonl", after=held))
        if missed:
            self._newest = max(self._newest, missed[-1].step)
            fed.read = (missed[-1].step, missed[-1].time)
        fed.waiting = deque([*missed, *(one for one in fed.waiting if (one.step, one.time) > fed.read)])

    def _feed(self, fed: _Fed, whole: int) -> None:
        """Give it all steps up to `whole` that are final, or need not be."""
        until = min(whole, self._final) if fed.waits else whole
        batch, fed.is_behind = [], False
        while fed.waiting and fed.waiting[0].step <= until:
            record = fed.waiting.popleft()
            if record.step > fed.published:
                batch.append(record)
        if batch:
            assert fed.logger is not None
            try:
                fed.logger.write(batch)
            except Exception:
                fed.waiting.extendleft(reversed(batch))
                raise
            fed.published = batch[-1].step

    def _end(self, fed: _Fed, how: str) -> None:
        assert fed.logger is not None
        fed.logger.flush()
        fed.logger.close(how)
        fed.is_closed = True

    def _try(self, fed: _Fed, act: Callable[..., None], *words: Any) -> None:
        try:
            act(fed, *words)
        except Exception as error:  # noqa: BLE001  (other people's code: its failure may not end the training)
            fed.is_open = False
            fed.retry_at = time.monotonic() + fed.retry_seconds
            log.warning(
                "the logger %r failed (%s: %s); it is tried again in %.0f s, and then gets what it misses: "
                "metrics.jsonl has every value",
                fed.name,
                type(error).__name__,
                error,
                fed.retry_seconds,
            )
            fed.retry_seconds = min(2 * fed.retry_seconds, _LAST_RETRY_SECONDS)
            fed.opened.set()
            fed.logger = None
