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

from autoresume.checkpoint.abandon import explained, last_good, or_abandoned
from autoresume.errors import StorageFull
from autoresume.failpoints import reach
from autoresume.format import names
from autoresume.format.digest import BLOCK_BYTES, blocks, seal, seal_blocks
from autoresume.format.manifest import File, Labels, PartHead, part_bytes
from autoresume.format.names import CheckpointName
from autoresume.spans import span
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
    chunks: bytes
    """JSON, as a part has it: `chunks_json`."""
    tree: bytes
    """JSON: the encoded state."""
    about: dict[str, Any]
    attachments: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """key -> (file name inside the checkpoint, content)."""
    files: tuple[str, ...] = ()
    """Side files of the run: they lie in the checkpoint's folder already, and are made durable and hashed here."""
    sync: dict[str, int] = field(default_factory=dict)
    """Files of the run that are made durable first, and how long they must be: the metric journal."""
    labels: Labels = field(default_factory=Labels)

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
        digests.append(seal(block))
    return File(file, size, BLOCK_BYTES, tuple(digests))


def persist(storage: Storage, snapshot: Snapshot, guard: Guard) -> None:
    """Write one rank's shard, attachments and part. All are durable when it returns.

    Raises StorageFull, before anything is written if the space is known to be short, StorageFailed if writing
    fails otherwise (what was written is removed then), StaleIncarnation if this life is over.
    """
    guard()
    name = snapshot.checkpoint
    with span("persist"), or_abandoned(storage, name, snapshot.rank, guard), explained(storage, name):
        _persist(storage, snapshot, guard)


def _digests(image: memoryview) -> tuple[str, ...]:
    with span("digest"):
        return seal_blocks(image)


def _persist(storage: Storage, snapshot: Snapshot, guard: Guard) -> None:
    name = snapshot.checkpoint
    free = storage.free_bytes()
    if free is not None and free < snapshot.bytes + _HEADROOM:
        raise StorageFull(
            f"checkpoint {name} needs {snapshot.bytes / 1e6:.1f} MB for rank {snapshot.rank}, but only "
            f"{free / 1e6:.1f} MB are free (and {_HEADROOM / 1e6:.0f} MB are left to others); training goes on, and "
            f"{last_good(storage)} Free some space, or lower `keep`."
        )
    reach("persist.room")
    for file, least in snapshot.sync.items():
        storage.sync(file)
        if (storage.size(file) or 0) < least:
            raise StorageFull(
                f"checkpoint {name} is not written, since {file} lacks lines that could not be written before: a "
                f"checkpoint may not know more steps than it. Training goes on, and {last_good(storage)}"
            )
    with ThreadPoolExecutor(1, "autoresume-digest") as pool:
        digests = pool.submit(_digests, snapshot.image)
        storage.write(name.shard(snapshot.rank), snapshot.image)
        shard = File(names.shard_file(snapshot.rank), len(snapshot.image), BLOCK_BYTES, digests.result())
    reach("persist.shard_written")
    attachments = {}
    for key, (file, data) in snapshot.attachments.items():
        storage.write(name.inside(file), data)
        attachments[key] = File(file, len(data), BLOCK_BYTES, seal_blocks(memoryview(data)))
    for file in snapshot.files:
        storage.sync(name.inside(file))
        attachments[file] = hash_file(storage, name, file)
    head = PartHead(
        run_id=snapshot.run_id,
        checkpoint=name,
        rank=snapshot.rank,
        world_size=snapshot.world_size,
        time=snapshot.time,
        shard=shard,
        attachments=attachments,
        labels=snapshot.labels,
    )
    part = part_bytes(head, snapshot.chunks, snapshot.tree, snapshot.about)
    guard()
    storage.write(name.part(snapshot.rank), part)
    reach("persist.part_written")
