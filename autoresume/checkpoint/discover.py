"""Which checkpoints a run has, and which of them are worth restoring.

Law: latest is a listing, newest first, judged; nothing points at "the latest". Judging is cheap (the
manifest, the parts' digests, sizes of all files); the shards' digests are checked while they are
read, or by `verify`. A glance is cheaper: one file, however many ranks there are. A reason is a sentence
that names the file.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from autoresume.checkpoint.abandon import folders, has_manifest
from autoresume.checkpoint.commit import THREADS, commit_if_complete, read_part
from autoresume.checkpoint.persist import Guard
from autoresume.errors import CheckpointInvalid, StorageFailed, StorageFull
from autoresume.format import names
from autoresume.format.digest import seal
from autoresume.format.manifest import Manifest, ManifestHead, PartEntry, manifest_of
from autoresume.format.names import CheckpointName
from autoresume.format.part import Part, PartHead
from autoresume.storage.base import Storage

P = TypeVar("P", bound=PartHead)


@dataclass(frozen=True)
class Judged:
    """A checkpoint and what is thought of it: valid if and only if `problem` is None."""

    name: CheckpointName
    manifest: Manifest | None
    problem: str | None
    uncommitted: bool = False
    """There was no manifest."""

    @property
    def committed(self) -> bool:
        return self.manifest is not None


def list_checkpoints(storage: Storage) -> list[CheckpointName]:
    """All folders that are named like a checkpoint, newest first, unjudged."""
    return sorted(folders(storage), reverse=True)


def newest_step(storage: Storage) -> int:
    """The step of the newest committed checkpoint; 0 if there is none."""
    return next((name.step for name in list_checkpoints(storage) if storage.size(name.manifest) is not None), 0)


def judge_quickly(storage: Storage, name: CheckpointName, run_id: str | None = None) -> ManifestHead:
    """What a committed checkpoint says of itself. Its manifest is whole; nothing else is looked at.

    Raises FileNotFoundError if it was never committed, CheckpointInvalid, with `run_id` also for another run's.
    """
    head = ManifestHead.from_bytes(storage.read(name.manifest))
    _check_identity(head, name, run_id)
    return head


def judge(storage: Storage, name: CheckpointName, run_id: str | None = None) -> Judged:
    """Everything but the shards' digests. With `run_id`, a checkpoint of another run is foreign."""
    try:
        manifest = Manifest.from_bytes(storage.read(name.manifest))
    except FileNotFoundError:
        return Judged(name, None, f"it was never committed: {_why_uncommitted(storage, name)}", uncommitted=True)
    except (CheckpointInvalid, OSError) as error:
        return Judged(name, None, str(error))
    try:
        _check_identity(manifest, name, run_id)
        with ThreadPoolExecutor(THREADS, "autoresume-judge") as pool:
            _check_sizes(storage, manifest, pool)
            for _ in pool.map(
                lambda rank: _checked(storage, manifest, rank, PartHead.from_bytes), range(manifest.world_size)
            ):
                pass
    except (CheckpointInvalid, OSError) as error:
        return Judged(name, manifest, str(error))
    return Judged(name, manifest, None)


def _why_uncommitted(storage: Storage, name: CheckpointName) -> str:
    ranks = [rank for file in storage.list(name.parts) if (rank := names.parse_part_file(file)) is not None]
    told = f"{len(ranks)} parts and no manifest.json"
    with contextlib.suppress(OSError):
        try:
            if ranks and len(ranks) == read_part(storage, name, ranks[0])[0].world_size:
                manifest_of(read_part(storage, name, rank) for rank in ranks)
        except CheckpointInvalid as error:
            return f"{told} ({error})"
    return told


def _check_identity(found: Manifest | ManifestHead, name: CheckpointName, run_id: str | None) -> None:
    if str(found.checkpoint) != str(name):
        raise CheckpointInvalid(f"its manifest is of {found.checkpoint}")
    if run_id is not None and found.run_id != run_id:
        raise CheckpointInvalid(f"it belongs to another run, {found.run_id}")


def _check_sizes(storage: Storage, manifest: Manifest, pool: ThreadPoolExecutor) -> None:
    def look(entry: PartEntry) -> list[tuple[str, int | None, int]]:
        files = ((names.part_file(entry.rank), entry.bytes), *entry.files)
        return [(file, storage.size(manifest.checkpoint.inside(file)), expected) for file, expected in files]

    missing = []
    for file, size, expected in itertools.chain.from_iterable(pool.map(look, manifest.parts)):
        if size is None:
            missing.append(file)
        elif size != expected:
            raise CheckpointInvalid(f"{file} has {size} bytes instead of {expected}")
    if missing:
        raise CheckpointInvalid(f"{len(missing)} of its files are missing, e.g. {missing[0]}")


def load_part(storage: Storage, manifest: Manifest, rank: int) -> Part:
    """One rank's part, checked against the manifest. Raises CheckpointInvalid."""
    return _checked(storage, manifest, rank, Part.from_bytes)


def load_parts(storage: Storage, manifest: Manifest, ranks: Iterable[int]) -> list[Part]:
    """The parts of `ranks`, in their order. Raises CheckpointInvalid."""
    with ThreadPoolExecutor(THREADS, "autoresume-parts") as pool:
        return list(pool.map(lambda rank: load_part(storage, manifest, rank), ranks))


def _checked(storage: Storage, manifest: Manifest, rank: int, parse: Callable[[bytes], P]) -> P:
    entry = manifest.parts[rank]
    data = storage.read(manifest.checkpoint.part(rank))
    if len(data) != entry.bytes or seal(data) != entry.digest:
        raise CheckpointInvalid(f"{names.part_file(rank)} does not have the digest that the manifest lists")
    try:
        part = parse(data)
    except CheckpointInvalid as error:
        raise CheckpointInvalid(f"{names.part_file(rank)}: {error}") from error
    if part.files != entry.files:
        raise CheckpointInvalid(f"{names.part_file(rank)} lists other files than the manifest does")
    if part.rank != rank or str(part.checkpoint) != str(manifest.checkpoint):
        raise CheckpointInvalid(f"{names.part_file(rank)} is rank {part.rank}'s of {part.checkpoint}")
    return part


def complete_commits(storage: Storage, guard: Guard) -> list[CheckpointName]:
    """Commit what a dead incarnation had finished writing but not published. Returns what was completed."""
    completed = []
    for name in list_checkpoints(storage):
        if not has_manifest(storage, name):
            try:
                if commit_if_complete(storage, name, guard) is not None:
                    completed.append(name)
            except (CheckpointInvalid, StorageFull, StorageFailed):
                continue  # it stays uncommitted, and its reason is told when it is judged
    return completed


def set_aside(storage: Storage, judged: Judged) -> str:
    """Move a checkpoint that can't be trusted out of the way, with its reason; returns where it lies now."""
    attempt = 0
    while storage.size(names.aside_folder(str(judged.name), attempt)) is not None:
        attempt += 1
    folder = names.aside_folder(str(judged.name), attempt)
    storage.move(judged.name.folder, folder)
    storage.write(f"{folder}/reason.txt", f"{judged.problem}\n".encode(errors="backslashreplace"))
    return folder
