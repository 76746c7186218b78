"""Who persists a sealed snapshot: a thread of this rank, or the node's daemon. One code, two owners.

Law: a sink takes a sealed arena, makes it durable, commits when all parts are there, prunes, and only
then gives the arena back. Failures are outcomes, not exceptions: training goes on, and the older
checkpoints stay.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.custody import Outcome, settle
from autoresume.checkpoint.persist import Guard, Snapshot, persist
from autoresume.checkpoint.retain import Keep
from autoresume.errors import AutoresumeError
from autoresume.format.names import CheckpointName
from autoresume.handoff.arena import Arena
from autoresume.handoff.mailbox import Mailbox
from autoresume.storage.base import Storage


@dataclass(frozen=True)
class Sealed:
    snapshot: Snapshot
    arena: Arena


class Sink(Protocol):
    """Where sealed snapshots go."""

    def submit(self, sealed: Sealed) -> None:
        """Hand a snapshot over. Returns at once; the arena is busy from now on."""

    def busy(self, arena: Arena) -> bool:
        """True while `arena` is still needed."""

    def outcomes(self) -> list[Outcome]:
        """What became of snapshots since the last call."""

    def alive(self) -> bool:
        """False when nobody persists any more (the daemon is gone)."""

    def close(self) -> None:
        """Wait for what was submitted."""


class ThreadSink:
    """Without a daemon: one background thread persists, commits and prunes."""

    def __init__(self, storage: Storage, keep: Keep, guard: Guard) -> None:
        self._storage, self._keep, self._guard = storage, keep, guard
        self._pool = ThreadPoolExecutor(1, "autoresume-persist")
        self._busy: dict[int, Future[None]] = {}
        self._outcomes: list[Outcome] = []
        self._lock = threading.Lock()
        self._collected = False

    def submit(self, sealed: Sealed) -> None:
        self._busy[id(sealed.arena)] = self._pool.submit(self._persist, sealed.snapshot)

    def busy(self, arena: Arena) -> bool:
        future = self._busy.get(id(arena))
        return future is not None and not future.done()

    def outcomes(self) -> list[Outcome]:
        with self._lock:
            found, self._outcomes = self._outcomes, []
        return found

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def _persist(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        name = snapshot.checkpoint
        try:
            persist(self._storage, snapshot, self._guard)
            manifest = commit_if_complete(self._storage, name, self._guard)
            if manifest is not None:
                settle(self._storage, name, self._keep, self._guard, self._collected)
                self._collected = True
            outcome = Outcome(str(name), manifest is not None, None, time.monotonic() - began, snapshot.bytes)
        except (AutoresumeError, OSError) as error:
            outcome = Outcome(str(name), False, f"{type(error).__name__}: {error}", time.monotonic() - began, 0)
        with self._lock:
            self._outcomes.append(outcome)


class DaemonSink:
    """With a daemon: a message names the sealed arena; the daemon removes the message when it is done."""

    def __init__(
        self, mailbox: Mailbox, run_folder: Path, daemon: tuple[int, float], lives: Callable[..., bool]
    ) -> None:
        self._mailbox, self._run_folder = mailbox, run_folder
        self._daemon, self._lives = daemon, lives
        self._sent: dict[int, str] = {}
        self._seen: set[str] = set()

    def submit(self, sealed: Sealed) -> None:
        snapshot, arena = sealed.snapshot, sealed.arena
        assert arena.path is not None
        message = f"sealed-{snapshot.checkpoint}-{snapshot.rank:05d}"
        attachments = {}
        for key, (file, data) in snapshot.attachments.items():
            blob = self._mailbox.folder / f"blob-{snapshot.rank}-{os.urandom(6).hex()}"
            blob.write_bytes(data)
            attachments[key] = [file, blob.name]
        self._mailbox.send(
            message,
            {
                "run_folder": str(self._run_folder),
                "arena": arena.path.name,
                "bytes": len(snapshot.image),
                "run_id": snapshot.run_id,
                "checkpoint": str(snapshot.checkpoint),
                "rank": snapshot.rank,
                "world_size": snapshot.world_size,
                "time": snapshot.time,
                "chunks": [asdict(chunk) for chunk in snapshot.chunks],
                "tree": snapshot.tree,
                "about": snapshot.about,
                "attachments": attachments,
                "files": list(snapshot.files),
                "sync": list(snapshot.sync),
            },
        )
        self._sent[id(arena)] = message

    def busy(self, arena: Arena) -> bool:
        message = self._sent.get(id(arena))
        return message is not None and self._mailbox.waiting(message)

    def outcomes(self) -> list[Outcome]:
        found = []
        for name in self._mailbox.names("outcome-"):
            if name not in self._seen:
                value: dict[str, Any] | None = self._mailbox.receive(name)
                if value is not None:
                    self._seen.add(name)
                    found.append(Outcome(**value))
        return found

    def alive(self) -> bool:
        return self._lives(*self._daemon)

    def close(self) -> None:
        while self.alive() and any(self._mailbox.waiting(message) for message in self._sent.values()):
            time.sleep(0.01)


def await_commit(
    storage: Storage, name: CheckpointName, sink: Sink, note: Callable[[], set[str]], guard: Guard, deadline: float
) -> bool:
    """Wait until `name` is committed; False at the monotonic `deadline`, or when nobody will commit it any more.

    `note()` gives the names of checkpoints that are known to have failed.
    """
    next_help = time.monotonic() + 1.0
    while storage.size(name.manifest) is None:
        now = time.monotonic()
        if str(name) in note() or not sink.alive() or now > deadline:
            return storage.size(name.manifest) is not None
        if now > next_help:
            # Shared file systems show other nodes' parts late: whoever sees them all at last commits.
            next_help = now + 1.0
            commit_if_complete(storage, name, guard)
        time.sleep(0.01)
    return True
