"""Which checkpoints stay, and the garbage of dead incarnations.

Law: choosing is a pure function of what is committed; nothing is deleted before a newer checkpoint
is committed, the newest committed one is never deleted, and only this run's own folders are touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoresume.checkpoint.discover import listing
from autoresume.checkpoint.persist import Guard
from autoresume.failpoints import reach
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.storage.base import Storage


@dataclass(frozen=True)
class Keep:
    """How many of the last to keep (at least 1), and which to keep for ever."""

    last: int = 3
    every_steps: int | None = None
    every_seconds: float | None = None


@dataclass(frozen=True)
class Committed:
    """A committed checkpoint and when it was committed (seconds since 1970)."""

    name: CheckpointName
    time: float


def superfluous(committed: Sequence[Committed], keep: Keep) -> list[CheckpointName]:
    """What may be deleted, oldest first. Permanent ones are the first in each interval of steps or time."""
    oldest_first = sorted(committed, key=lambda one: one.name)
    stays = {one.name for one in oldest_first[-max(1, keep.last) :]}
    seen: set[int] = set()
    permanent_until = float("-inf")
    for one in oldest_first:
        if keep.every_steps and one.name.step // keep.every_steps not in seen and one.name.step >= keep.every_steps:
            seen.add(one.name.step // keep.every_steps)
            stays.add(one.name)
        if keep.every_seconds and one.time >= permanent_until:
            permanent_until = one.time + keep.every_seconds
            stays.add(one.name)
    return [one.name for one in oldest_first if one.name not in stays]


def prune(storage: Storage, committed: Sequence[Committed], keep: Keep, guard: Guard) -> list[CheckpointName]:
    """Delete what is superfluous; returns what was deleted. Raises StaleIncarnation and OSError."""
    gone = superfluous(committed, keep)
    for name in gone:
        guard()
        reach("prune.before_remove")
        storage.remove(name.folder)
        reach("prune.after_remove")
    return gone


def collect_garbage(storage: Storage, incarnation: int, guard: Guard) -> list[str]:
    """Delete what dead incarnations left: uncommitted folders older than `incarnation`, temporary names.

    Called after this incarnation's first commit, so that whatever was there stays until a successor is.
    """
    gone = []
    for name in listing(storage):
        if name.incarnation < incarnation and storage.size(name.manifest) is None:
            guard()
            storage.remove(name.folder)
            gone.append(str(name))
    for file in storage.list(names.CHECKPOINTS):
        if names.is_temporary(file):
            guard()
            storage.remove(f"{names.CHECKPOINTS}/{file}")
            gone.append(file)
    return gone
