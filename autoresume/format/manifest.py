"""Parts and the manifest: what a checkpoint says of itself.

Law: values and their JSON, both ways; parsing trusts nothing and raises CheckpointInvalid with the
reason. A manifest holds nothing but what the parts determine, so whoever sees all parts writes the
same bytes: committing needs no leader. What grows with tensors or ranks comes last in both, so that who needs
the head alone parses no more than that. `docs/format.md` is the document of this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from autoresume.errors import CheckpointInvalid
from autoresume.format.digest import canonical, seal, why_invalid
from autoresume.format.names import FORMAT_VERSION, CheckpointName
from autoresume.format.part import Labels, PartHead
from autoresume.format.strict_json import (
    beginning_of,
    checkpoint_name,
    count_of,
    get,
    inside_name,
    load_object,
)

_MANIFEST_REST = b',"parts":['
"""What follows the head of a manifest."""
_SEAL_BYTES = len(b',"digest":""}') + 32


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
        value = load_object(beginning_of(data, _MANIFEST_REST, "manifest"), "manifest")
        try:
            return cls(
                run_id=get(value, "run_id", str),
                checkpoint=checkpoint_name(get(value, "checkpoint", str)),
                world_size=count_of(value.get("world_size")),
                time=get(value, "time", float),
                total_bytes=count_of(value.get("bytes")),
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
        value = load_object(data, "manifest")
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
        for row in get(value, "parts", list):
            if not isinstance(row, list) or len(row) != 4:
                raise CheckpointInvalid("the manifest's list of parts is malformed")
            files = tuple((inside_name(name), count_of(size)) for name, size in row[3])
            parts.append(PartEntry(count_of(row[0]), count_of(row[1]), str(row[2]), files))
        manifest = cls(
            run_id=get(value, "run_id", str),
            checkpoint=checkpoint_name(get(value, "checkpoint", str)),
            world_size=count_of(value.get("world_size")),
            time=get(value, "time", float),
            parts=tuple(parts),
            labels=Labels.of(value.get("labels")),
        )
        if len(parts) != manifest.world_size or any(part.rank != rank for rank, part in enumerate(parts)) or not parts:
            raise CheckpointInvalid(f"the manifest lists {len(parts)} parts for {manifest.world_size} ranks")
        return manifest


def entry_of(part: PartHead, data: bytes) -> PartEntry:
    """The manifest's entry for a part, of which `data` is the whole."""
    return PartEntry(part.rank, len(data), seal(data), part.files)


def _check_replicas(one: PartHead, other: PartHead) -> None:
    """Raises CheckpointInvalid where what each stored a share of was not the same on both ranks."""
    if one.replicas == other.replicas or (one.replicas and other.replicas and one.replicas.agree(other.replicas)):
        return
    raise CheckpointInvalid(
        f"on ranks {one.rank} and {other.rank} tensors differ that were the same before, and of which each rank has "
        "stored a share: put together they would be a mixture of the ranks' states"
    )


def manifest_of(parts: Iterable[tuple[PartHead, PartEntry]]) -> Manifest:
    """The manifest of all parts, in any order. Raises CheckpointInvalid if they don't agree."""
    ordered = sorted(parts, key=lambda item: item[0].rank)
    first = ordered[0][0]
    for part, _ in ordered:
        if (part.run_id, part.checkpoint, part.world_size) != (first.run_id, first.checkpoint, first.world_size):
            raise CheckpointInvalid(f"the parts of ranks {first.rank} and {part.rank} are of different checkpoints")
        _check_replicas(first, part)
    if [part.rank for part, _ in ordered] != list(range(first.world_size)):
        raise CheckpointInvalid(f"{len(ordered)} of {first.world_size} parts are there")
    entries = tuple(entry for _, entry in ordered)
    return Manifest(first.run_id, first.checkpoint, first.world_size, first.time, entries, first.labels)
