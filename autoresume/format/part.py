"""A part: what one rank wrote of a checkpoint, with the place and the digests of every byte.

Law: docs/format.md is what is written; a part that says anything else is a CheckpointInvalid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoresume.errors import CheckpointInvalid, StateError
from autoresume.format import names
from autoresume.format.digest import canonical
from autoresume.format.names import FORMAT_VERSION, CheckpointName
from autoresume.format.strict_json import (
    beginning_of,
    checkpoint_name,
    count_of,
    get,
    inside_name,
    load_object,
    sizes_of,
)
from autoresume.format.tensorfile import aligned, item_bytes

MAX_DIMENSIONS = 64
"""PyTorch's own limit."""

MAX_BLOCK_BYTES = 2**30
"""A block is read into memory as a whole."""

_PART_REST = b',"chunks":['
"""What follows the head of a part."""


@dataclass(frozen=True)
class Chunk:
    """A box of one tensor in this rank's tensor file.

    `shape` is the whole tensor's; `offset` and `size` are the box's, in elements for each dimension.
    `shared` tensors are one tensor for all ranks, put together from all ranks' chunks; the others
    are this rank's own. `begin` is the absolute offset in bytes in the rank's image, which is its tensor files,
    each at a multiple of 4096: in the file, where there is only one.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    shared: bool
    begin: int

    @property
    def bytes(self) -> int:
        count = item_bytes(self.dtype)
        for size in self.size:
            count *= size
        return count

    @property
    def name(self) -> str:
        """Its name in the safetensors file."""
        return chunk_name(self.key, self.shape, self.offset, self.size)

    def row(self) -> list[Any]:
        """As a part lists it."""
        return [self.key, self.dtype, self.shape, self.offset, self.size, self.shared, self.begin]


def chunk_name(key: str, shape: tuple[int, ...], offset: tuple[int, ...], size: tuple[int, ...]) -> str:
    """A box's name in the safetensors file: the key, and the box where it isn't the whole tensor.

    A key that could be taken for one with a box gets the box "[:]".
    """
    if size == shape:
        return f"{key}[:]" if key.endswith("]") else key
    box = ",".join(f"{o}:{o + s}" for o, s in zip(offset, size))
    return f"{key}[{box}]"


def chunks_json(chunks: Iterable[Chunk]) -> bytes:
    """The list of chunks as it stands in a part."""
    return canonical([chunk.row() for chunk in chunks])


@dataclass(frozen=True)
class File:
    """A file of a checkpoint: name inside its folder, bytes, and the digest of each block."""

    name: str
    bytes: int
    block_bytes: int
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Labels:
    """What a checkpoint can be chosen by: the values that metrics had last, finite ones, and tags."""

    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    tags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"metrics": dict(self.metrics), "tags": list(self.tags)}

    @staticmethod
    def of(value: Any) -> Labels:
        """Raises CheckpointInvalid."""
        metrics, tags = (value.get("metrics"), value.get("tags")) if isinstance(value, dict) else (None, None)
        if not isinstance(metrics, dict) or not isinstance(tags, list):
            raise CheckpointInvalid("the labels are malformed")
        for name, number in metrics.items():
            if type(number) not in (int, float) or not math.isfinite(number):
                raise CheckpointInvalid(f"the metric {name!r} is {number!r}, not a finite number")
        if not all(isinstance(tag, str) for tag in tags):
            raise CheckpointInvalid("a tag is no string")
        return Labels(metrics, tuple(tags))


@dataclass(frozen=True)
class Replicas:
    """What a rank held of the state that all ranks hold alike, and of which each stores a share.

    `form`: which tensors; `turn`: which bytes of them were looked at (-1: all); `digest`: of those.
    """

    form: str
    turn: int
    digest: str

    def agree(self, other: Replicas) -> bool:
        """Whether nothing is known against putting both ranks' shares together."""
        return self.form == other.form and (self.turn != other.turn or self.digest == other.digest)

    def to_json(self) -> list[Any]:
        return [self.form, self.turn, self.digest]

    @staticmethod
    def of(value: Any) -> Replicas | None:
        """Raises CheckpointInvalid."""
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 3 or list(map(type, value)) != [str, int, str]:
            raise CheckpointInvalid("what a part says of its replicas is malformed")
        return Replicas(*value)


@dataclass(frozen=True)
class PartHead:
    """The beginning of a part: all that a commit needs of it. `time` is the snapshot's, in seconds since 1970."""

    run_id: str
    checkpoint: CheckpointName
    rank: int
    world_size: int
    time: float
    shard: File
    attachments: dict[str, File]
    labels: Labels
    unchanged: File | None = field(default=None, kw_only=True)
    """A second tensor file, which may be the same file in several checkpoints."""
    replicas: Replicas | None = field(default=None, kw_only=True)
    """None for a rank that shares nothing with others."""

    @property
    def tensor_files(self) -> tuple[tuple[int, File], ...]:
        """The tensor files, each with the byte of the image that it begins at."""
        first = (0, self.shard)
        return (first,) if self.unchanged is None else (first, (aligned(self.shard.bytes), self.unchanged))

    @property
    def image_bytes(self) -> int:
        begin, last = self.tensor_files[-1]
        return begin + last.bytes

    @property
    def all_files(self) -> tuple[File, ...]:
        """The tensor files and the attachments."""
        return (*(file for _, file in self.tensor_files), *self.attachments.values())

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """(name, bytes) of all files."""
        return tuple((file.name, file.bytes) for file in self.all_files)

    @staticmethod
    def from_bytes(data: bytes) -> PartHead:
        """Of a whole part, of which the rest is not looked at. Raises CheckpointInvalid."""
        try:
            return PartHead(**_head(load_object(beginning_of(data, _PART_REST, "part"), "part")))
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointInvalid(f"a part is malformed: {error}") from error


@dataclass(frozen=True)
class Part(PartHead):
    """What one rank wrote. `tree` holds its state, with references for tensors; `about` is free-form JSON."""

    chunks: tuple[Chunk, ...]
    tree: Any
    about: dict[str, Any]

    def to_bytes(self) -> bytes:
        return part_bytes(self, chunks_json(self.chunks), canonical(self.tree), self.about)

    @staticmethod
    def from_bytes(data: bytes) -> Part:
        """Raises CheckpointInvalid."""
        try:
            value = load_object(data, "part")
            part = Part(
                **_head(value),
                chunks=tuple(_chunk(row) for row in get(value, "chunks", list)),
                tree=value.get("tree"),
                about=get(value, "about", dict),
            )
        except (TypeError, ValueError, OverflowError, StateError) as error:
            raise CheckpointInvalid(f"a part is malformed: {error}") from error
        ranges = [(begin, begin + file.bytes) for begin, file in part.tensor_files]
        for chunk in part.chunks:
            if not any(begin <= chunk.begin and chunk.begin + chunk.bytes <= end for begin, end in ranges):
                raise CheckpointInvalid(f"tensor {chunk.name!r} of rank {part.rank} lies outside of its shard")
        return part


def part_bytes(head: PartHead, chunks: bytes, tree: bytes, about: dict[str, Any]) -> bytes:
    """A part, with its chunks and its tree given as JSON: they are large, and mostly those of the part before."""
    beginning = {
        "format_version": FORMAT_VERSION,
        "run_id": head.run_id,
        "checkpoint": str(head.checkpoint),
        "rank": head.rank,
        "world_size": head.world_size,
        "time": head.time,
        "shard": _file_json(head.shard),
        **({} if head.unchanged is None else {"unchanged": _file_json(head.unchanged)}),
        "attachments": {key: _file_json(file) for key, file in head.attachments.items()},
        "labels": head.labels.to_json(),
        **({} if head.replicas is None else {"replicas": head.replicas.to_json()}),
    }
    more = (b',"chunks":', chunks, b',"tree":', tree, b',"about":', canonical(about), b"}")
    return b"".join((canonical(beginning)[:-1], *more))


def _head(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of a PartHead."""
    rank, world_size = count_of(value.get("rank")), count_of(value.get("world_size"))
    time, shard = get(value, "time", float), _file(get(value, "shard", dict))
    if not math.isfinite(time):
        raise CheckpointInvalid(f"a part was written at the time {time}")
    if rank >= world_size:
        raise CheckpointInvalid(f"a part says rank {rank} of {world_size}")
    unchanged = _file(get(value, "unchanged", dict)) if "unchanged" in value else None
    for file, name in ((shard, names.shard_file(rank)), (unchanged, names.unchanged_file(rank))):
        if file is not None and file.name != name:
            raise CheckpointInvalid(f"the part of rank {rank} names the shard {file.name!r}")
    return {
        "run_id": get(value, "run_id", str),
        "checkpoint": checkpoint_name(get(value, "checkpoint", str)),
        "rank": rank,
        "world_size": world_size,
        "time": time,
        "shard": shard,
        "unchanged": unchanged,
        "attachments": {key: _file(file) for key, file in get(value, "attachments", dict).items()},
        "labels": Labels.of(value.get("labels")),
        "replicas": Replicas.of(value.get("replicas")),
    }


def _chunk(row: Any) -> Chunk:
    if not isinstance(row, list) or len(row) != 7:
        raise CheckpointInvalid("a part's chunk is malformed")
    key, dtype, shape, offset, size, shared, begin = row
    if type(key) is not str or type(dtype) is not str or type(shared) is not bool:
        raise CheckpointInvalid(f"a part's chunk of tensor {key!r} is malformed")
    chunk = Chunk(key, dtype, sizes_of(shape), sizes_of(offset), sizes_of(size), shared, count_of(begin))
    _check_chunk(chunk)
    return chunk


def _check_chunk(chunk: Chunk) -> None:
    if not len(chunk.shape) == len(chunk.offset) == len(chunk.size):
        raise CheckpointInvalid(f"tensor {chunk.key!r} has a box of another dimension")
    elements = 1
    for offset, size, whole in zip(chunk.offset, chunk.size, chunk.shape):
        elements *= whole or 1
        if offset + size > whole:
            raise CheckpointInvalid(f"tensor {chunk.key!r} has a box outside of its shape")
    if len(chunk.shape) > MAX_DIMENSIONS or elements >= 2**62:
        raise CheckpointInvalid(f"tensor {chunk.key!r} has a shape that no tensor has: {chunk.shape}")
    item_bytes(chunk.dtype)


def _file(value: Any) -> File:
    if not isinstance(value, dict):
        raise CheckpointInvalid("a file's record is malformed")
    file = File(
        name=inside_name(value.get("name")),
        bytes=count_of(value.get("bytes")),
        block_bytes=count_of(value.get("block_bytes")),
        digests=tuple(str(item) for item in get(value, "digests", list)),
    )
    if not 1 <= file.block_bytes <= MAX_BLOCK_BYTES:
        raise CheckpointInvalid(f"{file.name!r} has digests of blocks of {file.block_bytes} bytes")
    if len(file.digests) != -(-file.bytes // file.block_bytes):
        raise CheckpointInvalid(f"the digests of {file.name!r} don't cover its {file.bytes} bytes")
    return file


def _file_json(file: File) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.bytes, "block_bytes": file.block_bytes, "digests": list(file.digests)}
