"""Publishing the manifest: a checkpoint exists from that moment on, and never before.

Law: no leader, no message, no barrier. Whoever sees all parts writes the same manifest, so it does
not matter who is first, how often it is done, or whether any trainer is still alive. What all ranks
do costs each of them little: whether all parts are there is asked part by part, in random order, up to
the first that is missing. That is about N ln N questions of N ranks together, in whatever order they come.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from autoresume.base.failpoints import failpoint
from autoresume.base.spans import span
from autoresume.checkpoint.abandon import explained
from autoresume.checkpoint.persist import Guard
from autoresume.errors import CheckpointInvalid
from autoresume.format.manifest import Manifest, PartEntry, entry_of, manifest_of
from autoresume.format.names import CheckpointName, parse_part_file
from autoresume.format.part import PartHead
from autoresume.storage.base import Storage

THREADS = 16
"""They wait for the storage, which answers many at a time."""
_FEW, _MOST_AT_ONCE = 8, 256


def commit_if_complete(
    storage: Storage, name: CheckpointName, guard: Guard, world_size: int | None = None
) -> Manifest | None:
    """Commit `name` if all its parts are there; None if some are missing. Durable when it returns.

    Every rank may call it after its part: with `world_size`, of the run that wrote `name`, no folder is listed.
    Raises CheckpointInvalid if parts contradict each other, StaleIncarnation if this life is over, StorageFull
    and StorageFailed if the manifest can't be written: it can still be committed later, by anybody.
    """
    with span("commit"), explained(storage, name), ThreadPoolExecutor(THREADS, "autoresume-commit") as pool:
        if world_size is None:
            ranks: Sequence[int] = _listed(storage, name)
        else:
            ranks = range(world_size if _all_there(storage, name, world_size, pool) else 0)
        return _commit(storage, name, guard, ranks, pool) if ranks else None


def _listed(storage: Storage, name: CheckpointName) -> list[int]:
    """The ranks whose parts are there, if they are all."""
    ranks = [rank for file in storage.list(name.parts) if (rank := parse_part_file(file)) is not None]
    return ranks if ranks and len(ranks) >= read_part(storage, name, ranks[0])[0].world_size else []


def _all_there(storage: Storage, name: CheckpointName, world_size: int, pool: ThreadPoolExecutor) -> bool:
    ranks, count = _shuffled(world_size), 1
    while some := list(itertools.islice(ranks, count)):
        look = map if count < _FEW else pool.map  # most ranks need no thread
        if None in look(lambda rank: storage.size(name.part(rank)), some):
            return False
        count = min(2 * count, _MOST_AT_ONCE)
    return True


def _shuffled(count: int) -> Iterator[int]:
    """The numbers below `count` in random order; those that nobody asks for cost nothing.

    A generator of its own: the training's are not ours to turn.
    """
    generator, moved = random.Random(), dict[int, int]()  # noqa: S311  (nothing secret)
    for last in range(count - 1, -1, -1):
        drawn = generator.randint(0, last)
        yield moved.get(drawn, drawn)
        moved[drawn] = moved.get(last, last)


def _commit(
    storage: Storage, name: CheckpointName, guard: Guard, ranks: Sequence[int], pool: ThreadPoolExecutor
) -> Manifest:
    manifest = manifest_of(pool.map(lambda rank: read_part(storage, name, rank), ranks))
    for _ in pool.map(lambda entry: _check_sizes(storage, name, entry), manifest.parts):
        pass
    # A rank may have died between publishing a file and syncing its folder: what counts must not depend on it.
    folders = {file.rpartition("/")[0] for entry in manifest.parts for file, _ in entry.files} | {"parts"}
    for folder in sorted(folders):
        storage.sync(name.inside(folder))
    guard()
    failpoint("commit.before_manifest")
    # Not into a folder that is gone: a process that was stopped since it looked at its guard, for as long as its
    # successors needed to commit this checkpoint, and newer ones, and to prune it, would make a torn one of it.
    storage.add(name.manifest, manifest.to_bytes())
    failpoint("commit.after_manifest")
    return manifest


def read_part(storage: Storage, name: CheckpointName, rank: int) -> tuple[PartHead, PartEntry]:
    """What a manifest needs of a part. Raises CheckpointInvalid if it is missing, or isn't this rank's of `name`."""
    try:
        data = storage.read(name.part(rank))
    except FileNotFoundError:
        raise CheckpointInvalid(f"the part of rank {rank} is missing") from None
    part = PartHead.from_bytes(data)
    if part.checkpoint != name or part.rank != rank or str(part.checkpoint) != str(name):
        raise CheckpointInvalid(f"the part of rank {rank} says that it is rank {part.rank}'s of {part.checkpoint}")
    return part, entry_of(part, data)


def _check_sizes(storage: Storage, name: CheckpointName, entry: PartEntry) -> None:
    for file, size in entry.files:
        found = storage.size(name.inside(file))
        if found != size:
            raise CheckpointInvalid(f"{file} has {found} bytes instead of {size}")
