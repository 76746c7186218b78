"""Persists the snapshots that ranks sealed, whether or not the ranks still live.

Law: a sealed message is handled to its end: persisted and, when all parts are there, committed, or
given up with its reason told; then it is removed, which gives the arena back. One thread for each
local rank, since every rank writes one file.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autoresume.base import spans
from autoresume.base.failpoints import failpoint
from autoresume.checkpoint import incarnation
from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.committed import Outcome, prune_after_commit
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.checkpoint.retain import Keep
from autoresume.errors import AutoresumeError
from autoresume.format.names import CheckpointName
from autoresume.format.part import Labels, Replicas
from autoresume.handoff import kept_snapshots
from autoresume.handoff.arena import Arena
from autoresume.handoff.mailbox import Mailbox
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")

_TICK_NANOSECONDS = 100_000_000
_SLOW_COPY_BYTES_PER_SECOND = 1e9
"""Stands for the copy into the arena, which the persister does not see: slower than any machine does it."""


class Persister:
    def __init__(self, mailbox: Mailbox, threads: int) -> None:
        self._mailbox = mailbox
        self._pool = ThreadPoolExecutor(max(1, threads), "autoresume-persist")
        self._running: dict[str, Future[None]] = {}
        self._collected: set[int] = set()
        self._told: list[str] = []
        self._looked_at: int | None = None
        """When the mailbox had last changed, if all that had come by then was seen."""
        self.keep = Keep()
        self._costs: deque[float] = deque(maxlen=40)

    def start_new(self) -> None:
        """Begin to persist what was sealed since the last look."""
        self._running = {name: future for name, future in self._running.items() if not future.done()}
        changed = os.stat(self._mailbox.folder).st_mtime_ns
        if changed == self._looked_at:
            return  # many times a second nothing has come
        # The clock of a file system ticks slowly: another message may come in the same tick as the last one.
        self._looked_at = changed if time.time_ns() - changed > _TICK_NANOSECONDS else None
        for name in self._mailbox.names("sealed-"):
            if name not in self._running:
                message = self._mailbox.receive(name)
                if message is not None:
                    self._running[name] = self._pool.submit(self._handle, name, message)

    def drain(self) -> None:
        """Return when everything that was sealed has been handled."""
        while True:
            self.start_new()
            if not self._running:
                return
            for future in list(self._running.values()):
                future.result()

    @property
    def busy(self) -> bool:
        """True while something that was sealed is being persisted."""
        return any(not future.done() for future in self._running.values())

    @property
    def cost_seconds(self) -> float | None:
        """What a save costs from its copy to its commit: the 95th percentile of this node's last ones."""
        ordered = sorted(self._costs)
        return ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else None

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def _handle(self, message_name: str, message: dict[str, Any]) -> None:
        began = time.monotonic()
        spans.set_recording(bool(message.get("spans")))
        checkpoint, problem, committed, size = str(message.get("checkpoint")), None, False, 0
        try:
            name = CheckpointName.parse(checkpoint)
            assert name is not None
            storage = LocalStorage(message["run_folder"])
            guard = incarnation.guard(storage, name.incarnation)
            arena = Arena.open(self._mailbox.folder / message["arena"])
            try:
                snapshot = _snapshot(message, name, arena, self._mailbox.folder)
                size = snapshot.bytes
                failpoint("daemon.persist")
                persist(storage, snapshot, guard)
                kept_snapshots.note_kept(
                    self._mailbox, Path(message["arena"]).name, checkpoint, snapshot.rank, len(snapshot.image)
                )
                manifest = commit_if_complete(storage, name, guard, snapshot.world_size)
                if manifest is not None:
                    committed = True
                    prune_after_commit(storage, name, self.keep, guard, name.incarnation in self._collected)
                    self._collected.add(name.incarnation)
            finally:
                arena.close()
        except (AutoresumeError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
            log.warning("%s: %s", message_name, problem)
        except Exception as error:  # the thread's boundary: nothing may be tried for ever
            problem = f"{type(error).__name__}: {error}"
            log.exception("%s can't be handled", message_name)
        seconds = time.monotonic() - began
        if problem is None:
            self._costs.append(seconds + size / _SLOW_COPY_BYTES_PER_SECOND)
        self._tell(Outcome(checkpoint, committed, problem, seconds, size, spans.take_recorded()), message_name)
        attached = [blob for _, blob in dict(message.get("attachments") or {}).values()]
        for blob in (message.get("chunks"), message.get("tree"), *attached):
            if isinstance(blob, str):
                (self._mailbox.folder / Path(blob).name).unlink(missing_ok=True)
        self._mailbox.remove(message_name)

    def _tell(self, outcome: Outcome, message_name: str) -> None:
        name = message_name.replace("sealed-", "outcome-", 1)
        self._mailbox.send(name, asdict(outcome))
        self._told.append(name)
        while len(self._told) > 64:
            self._mailbox.remove(self._told.pop(0))


def _snapshot(message: dict[str, Any], name: CheckpointName, arena: Arena, folder: Path) -> Snapshot:
    def blob(name: str) -> bytes:
        return (folder / Path(name).name).read_bytes()

    return Snapshot(
        run_id=message["run_id"],
        checkpoint=name,
        rank=message["rank"],
        world_size=message["world_size"],
        time=message["time"],
        image=arena.view(message["bytes"]),
        chunks=blob(message["chunks"]),
        tree=blob(message["tree"]),
        about=message["about"],
        attachments={key: (file, blob(content)) for key, (file, content) in message["attachments"].items()},
        files=tuple(message["files"]),
        sync=dict(message["sync"]),
        labels=Labels.of(message["labels"]),
        first_bytes=message.get("first_bytes"),
        replicas=Replicas.of(message.get("replicas")),
    )
