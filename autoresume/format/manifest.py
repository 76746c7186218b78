"""Parts and the manifest: what a checkpoint says of itself.

Law: values and their JSON, both ways; parsing trusts nothing and raises CheckpointInvalid with the
reason. A manifest holds nothing but what the parts determine, so whoever sees all parts writes the
same bytes: committing needs no leader. `docs/format.md` is the document of this module.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from autoresume.errors import CheckpointInvalid, StateError
from autoresume.format import names
from autoresume.format.digest import canonical, digest
from autoresume.format.names import FORMAT_VERSION, CheckpointName
from autoresume.format.tensorfile import item_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """A box of one tensor in this rank's tensor file.

    `shape` is the whole tensor's; `offset` and `size` are the box's, in elements for each dimension.
    `shared` tensors are one tensor for all ranks, put together from all ranks' chunks; the others
    are this rank's own. `begin` is the absolute offset in bytes in the file.
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
        """Its name in the safetensors file: the key, and the box where it isn't the whole tensor.

        A key that could be taken for one with a box gets the box "[:]".
        """
        if self.size == self.shape:
            return f"{self.key}[:]" if self.key.endswith("]") else self.key
        box = ",".join(f"{o}:{o + s}" for o, s in zip(self.offset, self.size))
        return f"{self.key}[{box}]"


@dataclass(frozen=True)
class File:
    """A file of a checkpoint: name inside its folder, bytes, and the digest of each block."""

    name: str
    bytes: int
    block_bytes: int
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """What one rank wrote. `time` is the snapshot's, in seconds since 1970.

    `tree` holds its state, with references for tensors; `about` is free-form JSON.
    """

    run_id: str
    checkpoint: CheckpointName
    rank: int
    world_size: int
    time: float
    shard: File
    chunks: tuple[Chunk, ...]
    attachments: dict[str, File]
    tree: Any
    about: dict[str, Any]

    def to_bytes(self) -> bytes:
        return canonical(
            {
                "format_version": FORMAT_VERSION,
                "run_id": self.run_id,
                "checkpoint": str(self.checkpoint),
                "rank": self.rank,
                "world_size": self.world_size,
                "time": self.time,
                "shard": _file_json(self.shard),
                "chunks": [
                    [c.key, c.dtype, list(c.shape), list(c.offset), list(c.size), c.shared, c.begin]
                    for c in self.chunks
                ],
                "attachments": {key: _file_json(file) for key, file in self.attachments.items()},
                "tree": self.tree,
                "about": self.about,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Part:
        """Raises CheckpointInvalid."""
        try:
            return cls._of(_load(data, "part"))
        except (TypeError, ValueError, StateError) as error:
            raise CheckpointInvalid(f"a part is malformed: {error}") from error

    @classmethod
    def _of(cls, value: dict[str, Any]) -> Part:
        chunks = []
        for row in _get(value, "chunks", list):
            if not isinstance(row, list) or len(row) != 7:
                raise CheckpointInvalid("a part's chunk is malformed")
            key, dtype, shape, offset, size, shared, begin = row
            if type(key) is not str or type(dtype) is not str or type(shared) is not bool:
                raise CheckpointInvalid(f"a part's chunk of tensor {key!r} is malformed")
            chunk = Chunk(key, dtype, _sizes(shape), _sizes(offset), _sizes(size), shared, _count(begin))
            _check_chunk(chunk)
            chunks.append(chunk)
        part = cls(
            run_id=_get(value, "run_id", str),
            checkpoint=_name(_get(value, "checkpoint", str)),
            rank=_count(value.get("rank")),
            world_size=_count(value.get("world_size")),
            time=_get(value, "time", float),
            shard=_file(_get(value, "shard", dict)),
            chunks=tuple(chunks),
            attachments={key: _file(file) for key, file in _get(value, "attachments", dict).items()},
            tree=value.get("tree"),
            about=_get(value, "about", dict),
        )
        if part.rank >= part.world_size:
            raise CheckpointInvalid(f"a part says rank {part.rank} of {part.world_size}")
        if part.shard.name != names.shard_file(part.rank):
            raise CheckpointInvalid(f"the part of rank {part.rank} names the shard {part.shard.name!r}")
        outside = next((c for c in part.chunks if c.begin + c.bytes > part.shard.bytes), None)
        if outside is not None:
            raise CheckpointInvalid(f"tensor {outside.name!r} of rank {part.rank} lies outside of its shard")
        return part


@dataclass(frozen=True)
class PartEntry:
    """A part as the manifest lists it."""

    rank: int
    bytes: int
    digest: str
    files: tuple[tuple[str, int], ...]
    """(name, bytes) of the shard and the attachments, so that sizes can be checked without the part."""


@dataclass(frozen=True)
class Manifest:
    """The commit record: all parts, one for each rank. `time` is rank 0's snapshot's."""

    run_id: str
    checkpoint: CheckpointName
    world_size: int
    time: float
    parts: tuple[PartEntry, ...]

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
            "parts": [[p.rank, p.bytes, p.digest, [list(file) for file in p.files]] for p in self.parts],
        }
        return canonical({**value, "digest": digest(canonical(value))})

    @property
    def digest(self) -> str:
        """What the ranks agree on."""
        return digest(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises CheckpointInvalid."""
        value = _load(data, "manifest")
        try:
            manifest = cls._of(value)
            same = manifest.to_bytes() == data  # its digest is among them, and each manifest has one spelling
        except (TypeError, ValueError) as error:
            raise CheckpointInvalid(f"the manifest is malformed: {error}") from error
        if not same:
            raise CheckpointInvalid("the manifest's digest does not match its content")
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
        )
        if len(parts) != manifest.world_size or any(part.rank != rank for rank, part in enumerate(parts)) or not parts:
            raise CheckpointInvalid(f"the manifest lists {len(parts)} parts for {manifest.world_size} ranks")
        return manifest


def manifest_of(parts: list[tuple[Part, bytes]]) -> Manifest:
    """The manifest of all parts (with their bytes), in any order. Raises CheckpointInvalid if they don't agree."""
    parts = sorted(parts, key=lambda item: item[0].rank)
    first = parts[0][0]
    for part, _ in parts:
        if (part.run_id, part.checkpoint, part.world_size) != (first.run_id, first.checkpoint, first.world_size):
            raise CheckpointInvalid(f"the parts of ranks {first.rank} and {part.rank} are of different checkpoints")
    if [part.rank for part, _ in parts] != list(range(first.world_size)):
        raise CheckpointInvalid(f"{len(parts)} of {first.world_size} parts are there")
    entries = tuple(
        PartEntry(
            rank=part.rank,
            bytes=len(data),
            digest=digest(data),
            files=tuple((file.name, file.bytes) for file in (part.shard, *part.attachments.values())),
        )
        for part, data in parts
    )
    return Manifest(first.run_id, first.checkpoint, first.world_size, first.time, entries)


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
    return tuple(_count(item) for item in value)


def _check_chunk(chunk: Chunk) -> None:
    if not len(chunk.shape) == len(chunk.offset) == len(chunk.size):
        raise CheckpointInvalid(f"tensor {chunk.key!r} has a box of another dimension")
    if any(o + s > whole for o, s, whole in zip(chunk.offset, chunk.size, chunk.shape)):
        raise CheckpointInvalid(f"tensor {chunk.key!r} has a box outside of its shape")
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
    if file.block_bytes < 1 or len(file.digests) != -(-file.bytes // file.block_bytes):
        raise CheckpointInvalid(f"the digests of {file.name!r} don't cover its {file.bytes} bytes")
    return file


def _file_json(file: File) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.bytes, "block_bytes": file.block_bytes, "digests": list(file.digests)}
