"""Publishing the manifest: a checkpoint exists from that moment on, and never before.

Law: no leader, no message, no barrier. Whoever sees all parts writes the same manifest, so it does
not matter who is first, how often it is done, or whether any trainer is still alive.
"""

from __future__ import annotations

from autoresume.checkpoint.persist import Guard
from autoresume.errors import CheckpointInvalid
from autoresume.failpoints import reach
from autoresume.format.manifest import Manifest, Part, manifest_of
from autoresume.format.names import CheckpointName, parse_part_file
from autoresume.storage.base import Storage


def commit_if_complete(storage: Storage, name: CheckpointName, guard: Guard) -> Manifest | None:
    """Commit `name` if all its parts are there; None if some are missing. Durable when it returns.

    Raises CheckpointInvalid if parts contradict each other, StaleIncarnation if this life is over.
    """
    ranks = [rank for file in storage.list(name.parts) if (rank := parse_part_file(file)) is not None]
    if not ranks:
        return None
    first = read_part(storage, name, ranks[0])[0]
    if len(ranks) < first.world_size:
        return None
    manifest = manifest_of([read_part(storage, name, rank) for rank in ranks])
    for entry in manifest.parts:
        for file, size in entry.files:
            if storage.size(name.inside(file)) != size:
                raise CheckpointInvalid(f"{file} has {storage.size(name.inside(file))} bytes instead of {size}")
    # A rank may have died between publishing a file and syncing its folder: what counts must not depend on it.
    folders = {file.rpartition("/")[0] for entry in manifest.parts for file, _ in entry.files} | {"parts"}
    for folder in sorted(folders):
        storage.sync(name.inside(folder))
    guard()
    reach("commit.before_manifest")
    storage.write(name.manifest, manifest.to_bytes())
    reach("commit.after_manifest")
    return manifest


def read_part(storage: Storage, name: CheckpointName, rank: int) -> tuple[Part, bytes]:
    """A part and its bytes. Raises CheckpointInvalid if it is missing or isn't this rank's part of `name`."""
    try:
        data = storage.read(name.part(rank))
    except FileNotFoundError:
        raise CheckpointInvalid(f"the part of rank {rank} is missing") from None
    part = Part.from_bytes(data)
    if part.checkpoint != name or part.rank != rank or str(part.checkpoint) != str(name):
        raise CheckpointInvalid(f"the part of rank {rank} says that it is rank {part.rank}'s of {part.checkpoint}")
    return part, data
