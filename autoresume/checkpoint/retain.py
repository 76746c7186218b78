"""Which checkpoints stay, and the garbage of dead incarnations.

Law: choosing is a pure function of what is committed; nothing is deleted before a newer checkpoint
is committed, the newest committed one is never deleted, and only this run's own folders are touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from autoresume.base.failpoints import failpoint
from autoresume.checkpoint.abandon import has_manifest
from autoresume.checkpoint.discover import list_checkpoints
from autoresume.checkpoint.persist import Guard
from autoresume.checkpoint.sidefiles import walk
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.format.part import Labels
from autoresume.storage.base import Storage


@dataclass(frozen=True)
class Keep:
    """How many of the last to keep (at least 1), how many of the best by a metric, and which to keep for ever."""

    last: int = 3
    every_steps: int | None = None
    every_seconds: float | None = None
    best: int = 0
    metric: str = ""
    highest: bool = False
    """Whether the best is where the metric is highest."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of(value: Mapping[str, Any]) -> Keep:
        return Keep(**value)


@dataclass(frozen=True)
class Committed:
    """A committed checkpoint, when its snapshot was taken (seconds since 1970), and what it can be chosen by."""

    name: CheckpointName
    time: float
    labels: Labels = field(default_factory=Labels)


def best_first(committed: Sequence[Committed], metric: str, highest: bool) -> list[Committed]:
    """Those that have the metric, the best one first. Of equal ones the earlier is the better; NaN is never stored."""
    have = [one for one in committed if metric in one.labels.metrics]
    return sorted(have, key=lambda one: (one.labels.metrics[metric] * (-1 if highest else 1), one.name))


def superfluous(committed: Sequence[Committed], keep: Keep) -> list[CheckpointName]:
    """What may be deleted, oldest first. Permanent ones have a tag, or are the first in each interval of steps or time.

    `best` counts values, not checkpoints: many may be saved until a metric is logged again, and the first of them is
    the one that it was measured on, or next to it.
    """
    oldest_first = sorted(committed, key=lambda one: one.name)
    stays = {one.name for one in oldest_first[-max(1, keep.last) :]}
    stays |= {one.name for one in committed if one.labels.tags}
    if keep.best:
        first_with: dict[float, CheckpointName] = {}
        for one in best_first(committed, keep.metric, keep.highest):
            first_with.setdefault(one.labels.metrics[keep.metric], one.name)
        stays |= set(list(first_with.values())[: keep.best])
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
        failpoint("prune.before_remove")
        storage.remove(name.folder)
        failpoint("prune.after_remove")
    return gone


def collect_failed(storage: Storage, committed: CheckpointName, guard: Guard) -> list[CheckpointName]:
    """Delete what this incarnation began before `committed` and could not write whole; returns what it was."""
    gone = []
    for name in list_checkpoints(storage):
        if name.incarnation == committed.incarnation and name < committed and not has_manifest(storage, name):
            guard()
            storage.remove(name.folder)
            gone.append(name)
    return gone


def collect_unpublished(storage: Storage, incarnation: int, guard: Guard) -> list[str]:
    """Delete what dead processes were writing beside the checkpoints: records and side files.

    For the one process that has claimed `incarnation`, before others of it write there; its own heart does already.
    """
    records = [f"{names.INCARNATIONS}/{file}" for file in storage.list(names.INCARNATIONS)]
    own = names.incarnation_file(incarnation).removesuffix("json")
    found = [file for file in records if not file.startswith(own)]
    found += walk(storage, names.FILES)
    gone = [file for file in found if names.is_unpublished(file)]
    for file in gone:
        guard()
        storage.remove(file)
    return gone


def collect_garbage(storage: Storage, incarnation: int, guard: Guard) -> list[str]:
    """Delete what dead incarnations left: uncommitted folders older than `incarnation`, temporary names.

    Called after this incarnation's first commit, so that whatever was there stays until a successor is.
    """
    gone = []
    for name in list_checkpoints(storage):
        if name.incarnation < incarnation and not has_manifest(storage, name):
            guard()
            storage.remove(name.folder)
            gone.append(str(name))
    for file in storage.list(names.CHECKPOINTS):
        if names.is_temporary(file):
            guard()
            storage.remove(f"{names.CHECKPOINTS}/{file}")
            gone.append(file)
    return gone
