"""From a sealed snapshot in memory to a durable part of a checkpoint.

Law: the shard is durable before the part that describes it is published; the part is durable before
anybody may commit. Both owners of snapshots (the node daemon, and a thread of the rank where there
is no daemon) call this and nothing else.

What a snapshot names as unchanged is not written where one of this run's newest checkpoints has a file of the same
digests: that one gets a second name. Each checkpoint stays whole by itself, whichever of the others goes. A file of
another life is read against its digests before.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from autoresume.base.failpoints import failpoint
from autoresume.base.spans import span
from autoresume.checkpoint.abandon import explained, folders, last_good, or_abandoned
from autoresume.checkpoint.fetch import verify_file
from autoresume.errors import CheckpointInvalid, StorageFull
from autoresume.format import names
from autoresume.format.digest import BLOCK_BYTES, blocks, seal, seal_blocks
from autoresume.format.names import CheckpointName
from autoresume.format.part import File, Labels, PartHead, Replicas, part_bytes
from autoresume.format.tensorfile import aligned
from autoresume.storage.base import Storage

Guard = Callable[[], None]
"""Raises StaleIncarnation when a newer incarnation claimed the run."""

_HEADROOM = 64 * 1024 * 1024
_LOOKED_AT = 4
"""How many of the newest checkpoints may have a file that is the same now: some are not whole, or just going."""


@dataclass(frozen=True)
class Snapshot:
    """One rank's sealed state: its tensor files' image, byte for byte, and what belongs to it."""

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
    first_bytes: int | None = None
    """Of the image; behind them, at the next multiple of 4096, lies the file of what is likely to be unchanged."""

    replicas: Replicas | None = None

    @property
    def bytes(self) -> int:
        return len(self.image) + sum(len(data) for _, data in self.attachments.values())

    @property
    def shard(self) -> memoryview:
        return self.image if self.first_bytes is None else self.image[: self.first_bytes]

    @property
    def unchanged(self) -> memoryview | None:
        return None if self.first_bytes is None else self.image[aligned(self.first_bytes) :]


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


def _record(name: str, image: memoryview) -> File:
    with span("digest"):
        return File(name, len(image), BLOCK_BYTES, seal_blocks(image))


def _check_room(storage: Storage, snapshot: Snapshot, count: int) -> None:
    free = storage.free_bytes()
    if free is not None and free < count + _HEADROOM:
        raise StorageFull(
            f"checkpoint {snapshot.checkpoint} needs {count / 1e6:.1f} MB for rank {snapshot.rank}, but only "
            f"{free / 1e6:.1f} MB are free (and {_HEADROOM / 1e6:.0f} MB are left to others); training goes on, and "
            f"{last_good(storage)} Free some space, or lower `keep`."
        )


def _write_or_link(storage: Storage, snapshot: Snapshot, record: File, image: memoryview) -> None:
    """Bring what is likely to be unchanged into the checkpoint. Durable then."""
    name = snapshot.checkpoint
    before = sorted((one for one in folders(storage) if one < name), reverse=True)
    for one in before[:_LOOKED_AT]:
        try:
            # Whoever published a part had made its files durable before.
            if PartHead.from_bytes(storage.read(one.part(snapshot.rank))).unchanged != record:
                continue
            if one.incarnation != name.incarnation:
                # Once a life: a disk that spoilt it must not spoil all that come after it.
                verify_file(storage, one, record)
            storage.link(one.inside(record.name), name.inside(record.name), or_copy=False)
            return
        except (OSError, CheckpointInvalid):
            continue  # it goes while we look, it is damaged, or files can't have two names here
    _check_room(storage, snapshot, len(image))
    storage.write(name.inside(record.name), image)


def _persist(storage: Storage, snapshot: Snapshot, guard: Guard) -> None:
    name = snapshot.checkpoint
    shard, unchanged = snapshot.shard, snapshot.unchanged
    _check_room(storage, snapshot, snapshot.bytes - len(unchanged or b""))
    failpoint("persist.room")
    for file, least in snapshot.sync.items():
        storage.sync(file)
        if (storage.size(file) or 0) < least:
            raise StorageFull(
                f"checkpoint {name} is not written, since {file} lacks lines that could not be written before: a "
                f"checkpoint may not know more steps than it. Training goes on, and {last_good(storage)}"
            )
    with ThreadPoolExecutor(1, "autoresume-digest") as pool:
        second = pool.submit(_record, names.unchanged_file(snapshot.rank), unchanged) if unchanged is not None else None
        first = pool.submit(_record, names.shard_file(snapshot.rank), shard)
        storage.write(name.shard(snapshot.rank), shard)
        if second is not None and unchanged is not None:
            _write_or_link(storage, snapshot, second.result(), unchanged)
    failpoint("persist.shard_written")
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
        shard=first.result(),
        attachments=attachments,
        labels=snapshot.labels,
        unchanged=second.result() if second is not None else None,
        replicas=snapshot.replicas,
    )
    part = part_bytes(head, snapshot.chunks, snapshot.tree, snapshot.about)
    guard()
    storage.write(name.part(snapshot.rank), part)
    failpoint("persist.part_written")
