"""Which checkpoints a run has, and which of them are worth restoring.

Law: latest is a listing, newest first, judged; nothing points at "the latest". Judging is cheap (the
manifest, the parts' digests, sizes of all files); the shards' digests are checked while they are
read, or by `verify`. A reason is a sentence that names the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.persist import Guard
from autoresume.errors import CheckpointInvalid
from autoresume.format import names
from autoresume.format.digest import digest
from autoresume.format.manifest import Manifest, Part
from autoresume.format.names import CheckpointName
from autoresume.storage.base import Storage


@dataclass(frozen=True)
class Judged:
    """A checkpoint and what is thought of it: valid if and only if `problem` is None."""

    name: CheckpointName
    manifest: Manifest | None
    problem: str | None

    @property
    def committed(self) -> bool:
        return self.manifest is not None


def listing(storage: Storage) -> list[CheckpointName]:
    """All folders that are named like a checkpoint, newest first, unjudged."""
    found = (CheckpointName.parse(name) for name in storage.list(names.CHECKPOINTS))
    return sorted((name for name in found if name is not None), reverse=True)


def judge(storage: Storage, name: CheckpointName, run_id: str | None = None) -> Judged:
    """Everything but the shards' digests. With `run_id`, a checkpoint of another run is foreign."""
    try:
        manifest = Manifest.from_bytes(storage.read(name.manifest))
    except FileNotFoundError:
        count = len([file for file in storage.list(name.parts) if names.parse_part_file(file) is not None])
        return Judged(name, None, f"it was never committed: {count} parts and no manifest.json")
    except (CheckpointInvalid, OSError) as error:
        return Judged(name, None, str(error))
    try:
        if str(manifest.checkpoint) != str(name):
            raise CheckpointInvalid(f"its manifest is of {manifest.checkpoint}")
        if run_id is not None and manifest.run_id != run_id:
            raise CheckpointInvalid(f"it belongs to another run, {manifest.run_id}")
        for problem in _wrong_sizes(storage, manifest):
            raise CheckpointInvalid(problem)
        for rank in range(manifest.world_size):
            load_part(storage, manifest, rank)
    except (CheckpointInvalid, OSError) as error:
        return Judged(name, manifest, str(error))
    return Judged(name, manifest, None)


def _wrong_sizes(storage: Storage, manifest: Manifest) -> Iterator[str]:
    missing, example = 0, ""
    for entry in manifest.parts:
        for file, expected in ((names.part_file(entry.rank), entry.bytes), *entry.files):
            size = storage.size(manifest.checkpoint.inside(file))
            if size is None:
                missing, example = missing + 1, example or file
            elif size != expected:
                yield f"{file} has {size} bytes instead of {expected}"
    if missing:
        yield f"{missing} of its files are missing, e.g. {example}"


def load_part(storage: Storage, manifest: Manifest, rank: int) -> Part:
    """One rank's part, checked against the manifest. Raises CheckpointInvalid."""
    entry = manifest.parts[rank]
    data = storage.read(manifest.checkpoint.part(rank))
    if len(data) != entry.bytes or digest(data) != entry.digest:
        raise CheckpointInvalid(f"{names.part_file(rank)} does not have the digest that the manifest lists")
    part = Part.from_bytes(data)
    if part.rank != rank or str(part.checkpoint) != str(manifest.checkpoint):
        raise CheckpointInvalid(f"{names.part_file(rank)} is rank {part.rank}'s of {part.checkpoint}")
    return part


def complete_commits(storage: Storage, guard: Guard) -> list[CheckpointName]:
    """Commit what a dead incarnation had finished writing but not published. Returns what was completed."""
    completed = []
    for name in listing(storage):
        if storage.size(name.manifest) is None:
            try:
                if commit_if_complete(storage, name, guard) is not None:
                    completed.append(name)
            except (CheckpointInvalid, OSError):
                continue  # it stays uncommitted, and its reason is told when it is judged
    return completed


def set_aside(storage: Storage, judged: Judged) -> str:
    """Move a checkpoint that can't be trusted out of the way, with its reason; returns where it lies now."""
    attempt = 0
    while storage.size(names.aside_folder(str(judged.name), attempt)) is not None:
        attempt += 1
    folder = names.aside_folder(str(judged.name), attempt)
    storage.move(judged.name.folder, folder)
    storage.write(f"{folder}/reason.txt", f"{judged.problem}\n".encode())
    return folder
