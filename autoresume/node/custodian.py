"""Persists the snapshots that ranks sealed, whether or not the ranks still live.

Law: a sealed message is handled to its end: persisted and, when all parts are there, committed, or
given up with its reason told; then it is removed, which gives the arena back. One thread for each
local rank, since every rank writes one file.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.custody import Outcome, settle
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.checkpoint.retain import Keep
from autoresume.errors import AutoresumeError
from autoresume.failpoints import reach
from autoresume.format.manifest import Chunk
from autoresume.format.names import CheckpointName
from autoresume.handoff.arena import Arena
from autoresume.handoff.mailbox import Mailbox
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")


class Custodian:
    def __init__(self, mailbox: Mailbox, threads: int) -> None:
        self._mailbox = mailbox
        self._pool = ThreadPoolExecutor(max(1, threads), "autoresume-persist")
        self._running: dict[str, Future[None]] = {}
        self._collected: set[int] = set()
        self._told: list[str] = []
        self.keep = Keep()
        self.last_commit: str | None = None

    def look(self) -> None:
        """Begin to persist what was sealed since the last look."""
        self._running = {name: future for name, future in self._running.items() if not future.done()}
        for name in self._mailbox.names("sealed-"):
            if name not in self._running:
                message = self._mailbox.receive(name)
                if message is not None:
                    self._running[name] = self._pool.submit(self._handle, name, message)

    def drain(self) -> None:
        """Return when everything that was sealed has been handled."""
        while True:
            self.look()
            if not self._running:
                return
            for future in list(self._running.values()):
                future.result()

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def _handle(self, message_name: str, message: dict[str, Any]) -> None:
        began = time.monotonic()
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
                reach("daemon.persist")
                persist(storage, snapshot, guard)
                manifest = commit_if_complete(storage, name, guard)
                if manifest is not None:
                    committed, self.last_commit = True, checkpoint
                    settle(storage, name, self.keep, guard, name.incarnation in self._collected)
                    self._collected.add(name.incarnation)
            finally:
                arena.close()
        except (AutoresumeError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
            log.warning("%s: %s", message_name, problem)
        except Exception as error:  # the thread's boundary: nothing may be tried for ever
            problem = f"{type(error).__name__}: {error}"
            log.exception("%s can't be handled", message_name)
        self._tell(Outcome(checkpoint, committed, problem, time.monotonic() - began, size), message_name)
        for _, blob in dict(message.get("attachments") or {}).values():
            (self._mailbox.folder / Path(blob).name).unlink(missing_ok=True)
        self._mailbox.remove(message_name)

    def _tell(self, outcome: Outcome, message_name: str) -> None:
        name = message_name.replace("sealed-", "outcome-", 1)
        self._mailbox.send(name, asdict(outcome))
        self._told.append(name)
        while len(self._told) > 64:
            self._mailbox.remove(self._told.pop(0))


def _snapshot(message: dict[str, Any], name: CheckpointName, arena: Arena, folder: Path) -> Snapshot:
    chunks = tuple(
        Chunk(**{**row, "shape": tuple(row["shape"]), "offset": tuple(row["offset"]), "size": tuple(row["size"])})
        for row in message["chunks"]
    )
    attachments = {
        key: (file, (folder / Path(blob).name).read_bytes()) for key, (file, blob) in message["attachments"].items()
    }
    return Snapshot(
        run_id=message["run_id"],
        checkpoint=name,
        rank=message["rank"],
        world_size=message["world_size"],
        time=message["time"],
        image=arena.view(message["bytes"]),
        chunks=chunks,
        tree=message["tree"],
        about=message["about"],
        attachments=attachments,
        files=tuple(message["files"]),
        sync=tuple(message["sync"]),
    )
