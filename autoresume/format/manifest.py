"""Parts and the manifest: what a checkpoint says of itself.

Law: values and their JSON, both ways; parsing trusts nothing and raises CheckpointInvalid with the
reason. A manifest holds nothing but what the parts determine, so whoever sees all parts writes the
same bytes: committing needs no leader. What grows with tensors or ranks comes last in both, so that who needs
the head alone parses no more than that. `docs/format.md` is the document of this module.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from autoresume.errors import CheckpointInvalid, StateError
from autoresume.format import names
from autoresume.format.digest import canonical, seal, why_invalid
from autoresume.format.names import FORMAT_VERSION, CheckpointName
from autoresume.format.tensorfile import aligned, item_bytes

T = TypeVar("T")

_MAX_DIMENSIONS = 64
"""PyTorch's own limit."""
_MAX_BLOCK_BYTES = 2**30
"""A block is read into memory as a whole."""
_PART_REST, _MANIFEST_REST = b',"chunks":[', b',"parts":['
"""What follows the head of a part, and the head of a manifest."""
_SEAL_BYTES = len(b',"digest":""}') + 32


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
            return PartHead(**_head(_load(_beginning(data, _PART_REST, "part"), "part")))
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
            value = _load(data, "part")
            part = Part(
                **_head(value),
                chunks=tuple(_chunk(row) for row in _get(value, "chunks", list)),
                tree=value.get("tree"),
                about=_get(value, "about", dict),
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
    }
    more = (b',"chunks":', chunks, b',"tree":', tree, b',"about":', canonical(about), b"}")
    return b"".join((canonical(beginning)[:-1], *more))


def _head(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of a PartHead."""
    rank, world_size = _count(value.get("rank")), _count(value.get("world_size"))
    time, shard = _get(value, "time", float), _file(_get(value, "shard", dict))
    if not math.isfinite(time):
        raise CheckpointInvalid(f"a part was written at the time {time}")
    if rank >= world_size:
        raise CheckpointInvalid(f"a part says rank {rank} of {world_size}")
    unchanged = _file(_get(value, "unchanged", dict)) if "unchanged" in value else None
    for file, name in ((shard, names.shard_file(rank)), (unchanged, names.unchanged_file(rank))):
        if file is not None and file.name != name:
            raise CheckpointInvalid(f"the part of rank {rank} names the shard {file.name!r}")
    return {
        "run_id": _get(value, "run_id", str),
        "checkpoint": _name(_get(value, "checkpoint", str)),
        "rank": rank,
        "world_size": world_size,
        "time": time,
        "shard": shard,
        "unchanged": unchanged,
        "attachments": {key: _file(file) for key, file in _get(value, "attachments", dict).items()},
        "labels": Labels.of(value.get("labels")),
    }


def _chunk(row: Any) -> Chunk:
    if not isinstance(row, list) or len(row) != 7:
        raise CheckpointInvalid("a part's chunk is malformed")
    key, dtype, shape, offset, size, shared, begin = row
    if type(key) is not str or type(dtype) is not str or type(shared) is not bool:
        raise CheckpointInvalid(f"a part's chunk of tensor {key!r} is malformed")
    chunk = Chunk(key, dtype, _sizes(shape), _sizes(offset), _sizes(size), shared, _count(begin))
    _check_chunk(chunk)
    return chunk


@dataclass(frozen=True)
class PartEntry:
    """A part as the manifest lists it."""

    rank: int
    bytes: int
    digest: str
    files: tuple[tuple[str, int], ...]
    """(name, bytes) of the shard and the attachments, so that sizes can be checked without the part."""


@dataclass(frozen=True)
class ManifestHead:
    """The beginning of a manifest: what is known of a committed checkpoint without the list of its parts."""

    run_id: str
    checkpoint: CheckpointName
    world_size: int
    time: float
    total_bytes: int
    labels: Labels

    @classmethod
    def from_bytes(cls, data: bytes) -> ManifestHead:
        """Of a whole manifest, whose digest is checked. Raises CheckpointInvalid."""
        body = data[:-_SEAL_BYTES]
        if data[-_SEAL_BYTES:] != b',"digest":"%b"}' % seal(body + b"}").encode():
            raise CheckpointInvalid(_unlike(data))
        value = _load(_beginning(data, _MANIFEST_REST, "manifest"), "manifest")
        try:
            return cls(
                run_id=_get(value, "run_id", str),
                checkpoint=_name(_get(value, "checkpoint", str)),
                world_size=_count(value.get("world_size")),
                time=_get(value, "time", float),
                total_bytes=_count(value.get("bytes")),
                labels=Labels.of(value.get("labels")),
            )
        except (CheckpointInvalid, OverflowError) as error:
            raise CheckpointInvalid(f"the manifest is malformed: {error}") from error


def _unlike(data: bytes) -> str:
    told = data[-34:-2].decode(errors="replace")
    why = why_invalid(data[:-_SEAL_BYTES] + b"}", told)
    return f"the manifest's digest does not match its content: {why}"


@dataclass(frozen=True)
class Manifest:
    """The commit record: all parts, one for each rank. `time` and `labels` are rank 0's."""

    run_id: str
    checkpoint: CheckpointName
    world_size: int
    time: float
    parts: tuple[PartEntry, ...]
    labels: Labels

    @property
    def total_bytes(self) -> int:
        """Of all files of the checkpoint but the manifest itself."""
        return sum(part.bytes + sum(size for _, size in part.files) for part in self.parts)

    def to_bytes(self) -> bytes:
        value = {
            "format_version": FORMAT_VERSION,
            "run_id": self.run_id,
            "checkpoint": str(self.checkpoint),
            "world_size": self.world_size,
            "time": self.time,
            "bytes": self.total_bytes,
            "labels": self.labels.to_json(),
            "parts": [[p.rank, p.bytes, p.digest, [list(file) for file in p.files]] for p in self.parts],
        }
        return canonical({**value, "digest": seal(canonical(value))})

    @property
    def digest(self) -> str:
        """What the ranks agree on."""
        return seal(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises CheckpointInvalid."""
        value = _load(data, "manifest")
        try:
            manifest = cls._of(value)
            same = manifest.to_bytes() == data  # its digest is among them, and each manifest has one spelling
        except (CheckpointInvalid, TypeError, ValueError, OverflowError) as error:
            raise CheckpointInvalid(f"the manifest is malformed: {error}") from error
        if not same:
            raise CheckpointInvalid(_unlike(data))
        return manifest

    @classmethod
    def _of(cls, value: dict[str, Any]) -> Manifest:
        parts = []
        for row in _get(value, "parts", list):
            if not isinstance(row, list) or len(row) != 4:
                raise CheckpointInvalid("the manifest's list of parts is malformed")
            files = tuple((_inside(name), _count(size)) for name, size in row[3])
            parts.append(PartEntry(_count(row[0]), _count(row[1]), str(row[2]), files))
        manifest = cls(
            run_id=_get(value, "run_id", str),
            checkpoint=_name(_get(value, "checkpoint", str)),
            world_size=_count(value.get("world_size")),
            time=_get(value, "time", float),
            parts=tuple(parts),
            labels=Labels.of(value.get("labels")),
        )
        if len(parts) != manifest.world_size or any(part.rank != rank for rank, part in enumerate(parts)) or not parts:
            raise CheckpointInvalid(f"the manifest lists {len(parts)} parts for {manifest.world_size} ranks")
        return manifest


def entry_of(part: PartHead, data: bytes) -> PartEntry:
    """The manifest's entry for a part, of which `data` is the whole."""
    return PartEntry(part.rank, len(data), seal(data), part.files)


def manifest_of(parts: Iterable[tuple[PartHead, PartEntry]]) -> Manifest:
    """The manifest of all parts, in any order. Raises CheckpointInvalid if they don't agree."""
    ordered = sorted(parts, key=lambda item: item[0].rank)
    first = ordered[0][0]
    for part, _ in ordered:
        if (part.run_id, part.checkpoint, part.world_size) != (first.run_id, first.checkpoint, first.world_size):
            raise CheckpointInvalid(f"the parts of ranks {first.rank} and {part.rank} are of different checkpoints")
    if [part.rank for part, _ in ordered] != list(range(first.world_size)):
        raise CheckpointInvalid(f"{len(ordered)} of {first.world_size} parts are there")
    entries = tuple(entry for _, entry in ordered)
    return Manifest(first.run_id, first.checkpoint, first.world_size, first.time, entries, first.labels)


def _beginning(data: bytes, rest: bytes, what: str) -> bytes:
    """The JSON object `data` up to the key that `rest` begins with. Quotes inside of strings are escaped, and the
    values before that key hold no such list: it is found nowhere else."""
    end = data.find(rest)
    if end < 0:
        raise CheckpointInvalid(f"the {what} is malformed: it has no {rest.decode()}")
    return data[:end] + b"}"


def _load(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointInvalid(f"the {what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointInvalid(f"the {what} is not a JSON object")
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        hint = "; it was written by a newer autoresume: upgrade to read it" if newer else ""
        raise CheckpointInvalid(f"the {what} has format version {version!r}, this is {FORMAT_VERSION}{hint}")
    return value


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _get(value: dict[str, Any], key: str, kind: type[T]) -> T:
    found = value.get(key)
    if not isinstance(found, kind):
        raise CheckpointInvalid(f"{key!r} is {type(found).__name__}, not {kind.__name__}")
    return found


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise CheckpointInvalid(f"{value!r} is not a count")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise CheckpointInvalid(f"{value!r} is not a list of sizes")
    for item in value:
        if type(item) is not int or not 0 <= item < 2**62:
            raise CheckpointInvalid(f"{item!r} is not a count")
    return tuple(value)


def _check_chunk(chunk: Chunk) -> None:
    if not len(chunk.shape) == len(chunk.offset) == len(chunk.size):
        raise CheckpointInvalid(f"tensor {chunk.key!r} has a box of another dimension")
    elements = 1
    for offset, size, whole in zip(chunk.offset, chunk.size, chunk.shape):
        elements *= whole or 1
        if offset + size > whole:
            raise CheckpointInvalid(f"tensor {chunk.key!r} has a box outside of its shape")
    if len(chunk.shape) > _MAX_DIMENSIONS or elements >= 2**62:
        raise CheckpointInvalid(f"tensor {chunk.key!r} has a shape that no tensor has: {chunk.shape}")
    item_bytes(chunk.dtype)


def _inside(name: Any) -> str:
    if not isinstance(name, str) or not names.is_inside(name):
        raise CheckpointInvalid(f"{name!r} is not a file inside the checkpoint")
    return name


def _name(text: str) -> CheckpointName:
    name = CheckpointName.parse(text)
    if name is None:
        raise CheckpointInvalid(f"{text!r} is not a checkpoint's name")
    return name


def _file(value: Any) -> File:
    if not isinstance(value, dict):
        raise CheckpointInvalid("a file's record is malformed")
    file = File(
        name=_inside(value.get("name")),
        bytes=_count(value.get("bytes")),
        block_bytes=_count(value.get("block_bytes")),
        digests=tuple(str(item) for item in _get(value, "digests", list)),
    )
    if not 1 <= file.block_bytes <= _MAX_BLOCK_BYTES:
        raise CheckpointInvalid(f"{file.name!r} has digests of blocks of {file.block_bytes} bytes")
    if len(file.digests) != -(-file.bytes // file.block_bytes):
        raise CheckpointInvalid(f"the digests of {file.name!r} don't cover its {file.bytes} bytes")
    return file


def _file_json(file: File) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.bytes, "block_bytes": file.block_bytes, "digests": list(file.digests)}
