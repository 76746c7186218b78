"""What happens after a commit, and what is told of it.

Law: both owners of snapshots use this: a committed checkpoint makes older ones superfluous, and an
incarnation's first commit makes the garbage of dead ones collectable.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from autoresume.checkpoint.discover import listing
from autoresume.checkpoint.persist import Guard
from autoresume.checkpoint.retain import Committed, Keep, collect_garbage, prune
from autoresume.errors import CheckpointInvalid
from autoresume.format.manifest import Manifest
from autoresume.format.names import CheckpointName
from autoresume.storage.base import Storage

log = logging.getLogger("autoresume")


@dataclass(frozen=True)
class Outcome:
    """What became of one rank's snapshot. `committed`: its owner published the manifest."""

    checkpoint: str
    committed: bool
    problem: str | None
    seconds: float
    bytes: int


def committed_checkpoints(storage: Storage, run_id: str | None = None) -> list[Committed]:
    """All committed checkpoints (of one run) whose manifest can be read, newest first."""
    found = []
    for name in listing(storage):
        try:
            manifest = Manifest.from_bytes(storage.read(name.manifest))
        except (CheckpointInvalid, OSError):
            continue  # not committed, or damaged: retention neither counts nor deletes it
        if run_id is None or manifest.run_id == run_id:
            found.append(Committed(name, manifest.time))
    return found


def settle(storage: Storage, name: CheckpointName, keep: Keep, guard: Guard, collected: bool) -> None:
    """After `name` was committed: prune, and, if that was not done in this life, collect garbage.

    What can't be deleted now is deleted after the next commit: the commit stands. Raises StaleIncarnation.
    """
    try:
        run_id = Manifest.from_bytes(storage.read(name.manifest)).run_id
        prune(storage, committed_checkpoints(storage, run_id), keep, guard)
        if not collected:
            collect_garbage(storage, name.incarnation, guard)
    except OSError as error:
        log.warning("an old checkpoint could not be deleted: %s", error)
