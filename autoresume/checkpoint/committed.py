"""What happens after a commit, and what is told of it.

Law: both owners of snapshots use this: a committed checkpoint makes older ones superfluous, and an
incarnation's first commit makes the garbage of dead ones collectable.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoresume.checkpoint import tags
from autoresume.checkpoint.discover import judge_quickly, list_checkpoints
from autoresume.checkpoint.persist import Guard
from autoresume.checkpoint.retain import Committed, Keep, collect_failed, collect_garbage, prune
from autoresume.errors import CheckpointInvalid
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
    spans: Sequence[Sequence[Any]] = ()
    """What another process did for it, where spans are recorded."""


def committed_checkpoints(storage: Storage, run_id: str | None = None) -> list[Committed]:
    """All committed checkpoints (of one run) whose manifest is whole, newest first."""
    found, later = [], tags.given_tags(storage)
    for name in list_checkpoints(storage):
        try:
            head = judge_quickly(storage, name, run_id)
            found.append(Committed(name, head.time, tags.labels_of(head, later)))
        except (CheckpointInvalid, OSError):
            continue  # not committed, or damaged: retention neither counts nor deletes it
    return found


def prune_after_commit(storage: Storage, name: CheckpointName, keep: Keep, guard: Guard, collected: bool) -> None:
    """After `name` was committed: prune, delete what failed before it, and, once in a life, collect garbage.

    What can't be deleted now is deleted after the next commit: the commit stands. Raises StaleIncarnation.
    """
    try:
        run_id = judge_quickly(storage, name).run_id
        prune(storage, committed_checkpoints(storage, run_id), keep, guard)
        collect_failed(storage, name, guard)
        if not collected:
            collect_garbage(storage, name.incarnation, guard)
    except OSError as error:
        log.warning("an old checkpoint could not be deleted: %s", error)
