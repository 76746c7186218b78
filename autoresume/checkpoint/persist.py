"""From a sealed snapshot in memory to a durable part of a checkpoint.

Law: the shard is durable before the part that describes it is published; the part is durable before
anybody may commit. Both owners of snapshots (the node daemon, and a thread of the rank where there
is no daemon) call this and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from autoresume.errors import StorageFull
from autoresume.failpoints import reach
from autoresume.format import names
from autoresume.format.digest import BLOCK_BYTES, blocks, digest, digest_blocks
from autoresume.format.manifest import Chunk, File, Part
from autoresume.format.names import CheckpointName
from autoresume.storage.base import Storage

Guard = Callable[[], None]
"""Raises StaleIncarnation when a newer incarnation claimed the run."""

_HEADROOM = 64 * 1024 * 1024


@dataclass(frozen=True)
class Snapshot:
    """One rank's sealed state: the tensor file's image, byte for byte, and what belongs to it."""

    run_id: str
    checkpoint: CheckpointName
    rank: int
    world_size: int
    time: float
    image: memoryview
    chunks: tuple[Chunk, ...]
    tree: Any
    about: dict[str, Any]
    attachments: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """key -> (file name inside the checkpoint, content)."""
    files: tuple[str, ...] = ()
    """Side files of the run: they lie in the checkpoint's folder already, and are made durable and hashed here."""
    sync: tuple[str, ...] = ()
    """Files of the run that are made durable first: the metric journal."""

    @property
    def bytes(self) -> int:
        return len(self.image) + sum(len(data) for _, data in self.attachments.values())


def hash_file(storage: Storage, name: CheckpointName, file: str) -> File:
    """The record of a file that lies in the checkpoint, read block by block."""
    size = storage.size(name.inside(file))
    if size is None:
        raise FileNotFoundError(f"{file} of {name} is gone")
    digests = []
    for begin, end in blocks(size):
        block = bytearray(end - begin)
        storage.read(name.inside(file), into=memoryview(block), offset=begin)
        digests.append(digest(block))
    return File(file, size, BLOCK_BYTES, tuple(digests))


def persist(storage: Storage, snapshot: Snapshot, guard: Guard) -> Part:
    """Write one rank's shard, attachments and part. All are durable when it returns.

    Raises StorageFull before anything is written if the space is short, OSError if writing fails
    (what was written of the file at hand is removed), StaleIncarnation if this life is over.
    """
    guard()
    name = snapshot.checkpoint
    free = storage.free_bytes()
    if free is not None and free < snapshot.bytes + _HEADROOM:
        raise StorageFull(
            f"checkpoint {name} needs {snapshot.bytes / 1e6:.1f} MB for rank {snapshot.rank}, but only "
            f"{free / 1e6:.1f} MB are free; older checkpoints are kept and training goes on. Free some space, or "
            "lower `keep`."
        )
    for file in snapshot.sync:
        storage.sync(file)
    with ThreadPoolExecutor(1, "autoresume-digest") as pool:
        digests = pool.submit(digest_blocks, snapshot.image)
        storage.write(name.shard(snapshot.rank), snapshot.image)
        shard = File(names.shard_file(snapshot.rank), len(snapshot.image), BLOCK_BYTES, digests.result())
    reach("persist.shard_written")
    attachments = {}
    for key, (file, data) in snapshot.attachments.items():
        storage.write(name.inside(file), data)
        attachments[key] = File(file, len(data), BLOCK_BYTES, digest_blocks(memoryview(data)))
    for file in snapshot.files:
        storage.sync(name.inside(file))
        attachments[file] = hash_file(storage, name, file)
    part = Part(
        run_id=snapshot.run_id,
        checkpoint=name,
        rank=snapshot.rank,
        world_size=snapshot.world_size,
        time=snapshot.time,
        shard=shard,
        chunks=snapshot.chunks,
        attachments=attachments,
        tree=snapshot.tree,
        about=snapshot.about,
    )
    guard()
    storage.write(name.part(snapshot.rank), part.to_bytes())
    reach("persist.part_written")
    return part
