"""Persisting and committing: what is there when, and who may do it."""

from __future__ import annotations

import errno
import math
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from autoresume.base import failpoints
from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.discover import judge
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.checkpoint.verify import verify
from autoresume.errors import CheckpointInvalid, StaleIncarnation, StorageFailed, StorageFull
from autoresume.format import names
from autoresume.format.manifest import Manifest
from autoresume.format.names import CheckpointName
from autoresume.format.part import Part
from autoresume.storage.local import LocalStorage
from tests.checkpoint import lives
from tests.storage.forgetful import UnsyncedStorage

NAME = lives.name_of(10, 1)


@pytest.fixture
def storage(tmp_path: Path) -> UnsyncedStorage:
    return UnsyncedStorage(tmp_path)


def free() -> None:
    """A guard that lets everything pass."""


def over_at(nth: int) -> Callable[[], None]:
    """A guard that refuses when it is asked for the `nth` time."""
    asked = 0

    def guard() -> None:
        nonlocal asked
        asked += 1
        if asked == nth:
            raise StaleIncarnation("a newer one")

    return guard


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_the_part_describes_what_was_written(storage: UnsyncedStorage) -> None:
    """The part on disk names each file with its size, and is spelt as any part is."""
    snapshot = lives.snapshot(NAME, 1)
    persist(storage, snapshot, free)
    part = Part.from_bytes(storage.read(NAME.part(1)))
    assert part.to_bytes() == storage.read(NAME.part(1))
    assert storage.read(NAME.shard(1)) == snapshot.image
    for file in part.all_files:
        assert storage.size(NAME.inside(file.name)) == file.bytes


def test_nothing_is_written_without_room(storage: UnsyncedStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """StorageFull says how much is needed and how much is there, before the first byte is written."""
    monkeypatch.setattr(storage, "free_bytes", lambda: 50_000_000)
    with pytest.raises(StorageFull, match=r"needs 0\.0 MB for rank 0, but only 50\.0 MB"):
        persist(storage, lives.snapshot(NAME, 0), free)
    assert files_below(storage.root) == []


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (
            errno.ENOSPC,
            StorageFull,
            "No space left on device; training goes on, and E0_U5_S40-0001 stays the last good",
        ),
        (errno.EDQUOT, StorageFull, "ask for a larger quota"),
        (errno.EROFS, StorageFailed, "have it mounted for writing again"),
        (errno.EIO, StorageFailed, "look at the machine's log"),
        (errno.EACCES, StorageFailed, "permissions"),
        (errno.ESTALE, StorageFailed, r"\[Errno 116\].*training goes on"),
    ],
)
def test_what_can_not_be_written_is_explained(
    storage: UnsyncedStorage, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], advice: str
) -> None:
    """What happens next, what a resume would begin with, and what to do about each error that disks have."""
    for rank in range(2):
        persist(storage, lives.snapshot(lives.name_of(5, 1), rank), free)
    commit_if_complete(storage, lives.name_of(5, 1), free)

    def fail(descriptor: int, path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(storage, "_sync_file", fail)
    with pytest.raises(kind, match=advice):
        persist(storage, lives.snapshot(NAME, 0), free)
    assert storage.list("checkpoints") == ["E0_U5_S40-0001"]


def test_no_checkpoint_knows_more_than_the_journal(storage: UnsyncedStorage) -> None:
    """Lines that wait in memory, since the disk was full a moment ago, would be lost behind a checkpoint."""
    storage.write("metrics.jsonl", b"x" * 99)
    snapshot = replace(lives.snapshot(NAME, 0), sync={"metrics.jsonl": 100})
    with pytest.raises(StorageFull, match=r"metrics\.jsonl lacks lines"):
        persist(storage, snapshot, free)
    assert files_below(storage.root) == ["metrics.jsonl"]
    storage.write("metrics.jsonl", b"x" * 100)
    persist(storage, snapshot, free)


def test_a_life_that_is_over_writes_nothing(storage: UnsyncedStorage) -> None:
    """The guard is asked before anything is written."""
    with pytest.raises(StaleIncarnation):
        persist(storage, lives.snapshot(NAME, 0), over_at(1))
    assert files_below(storage.root) == []


def test_a_life_that_ends_meanwhile_publishes_no_part(storage: UnsyncedStorage) -> None:
    """The guard is asked again before the part: a shard without a part is nobody's checkpoint."""
    with pytest.raises(StaleIncarnation):
        persist(storage, lives.snapshot(NAME, 0), over_at(2))
    assert storage.list(NAME.parts) == []


def test_a_life_that_is_over_commits_nothing(storage: UnsyncedStorage) -> None:
    """The guard is asked before the manifest."""
    for rank in range(2):
        persist(storage, lives.snapshot(NAME, rank), free)
    with pytest.raises(StaleIncarnation):
        commit_if_complete(storage, NAME, over_at(1))
    assert not judge(storage, NAME).committed


def test_the_order_of_writing(storage: UnsyncedStorage) -> None:
    """The journal is made durable first; then shard, attachments, part, in this order; and at last the manifest."""
    storage.write("metrics.jsonl", b"")
    order: list[str] = []
    failpoints.set_observer(lambda name: order.append(name) if "write" not in name else None)
    original_add, original_sync = storage.add, storage.sync

    def add(name: str, data: bytes | memoryview) -> None:
        order.append(name.removeprefix(f"{NAME.folder}/"))
        original_add(name, data)

    def sync(name: str) -> None:
        if name == "metrics.jsonl":
            order.append(f"sync {name}")
        original_sync(name)

    storage.add, storage.sync = add, sync  # type: ignore[method-assign]
    try:
        for rank in range(2):
            persist(storage, lives.snapshot(NAME, rank), free)
            commit_if_complete(storage, NAME, free)
    finally:
        failpoints.set_observer(None)
    one = [
        "sync metrics.jsonl",
        "shards/rank-0000{}.safetensors",
        "pickles/rank-0000{}-env.pkl",
        "parts/rank-0000{}.json",
    ]
    of_ranks = [[step.format(rank) for step in one] for rank in range(2)]
    written = "persist.part_written"
    commit = ["commit.before_manifest", "manifest.json", "commit.after_manifest"]
    assert [step for step in order if step not in ("persist.room", "persist.shard_written")] == [
        *of_ranks[0],
        written,
        *of_ranks[1],
        written,
        *commit,
    ]


@pytest.mark.parametrize("world_size", [None, 2])
def test_no_manifest_before_all_parts(storage: UnsyncedStorage, world_size: int | None) -> None:
    """None, and nothing published, for no part, and for one of two; whether one knows how many there must be or not."""
    assert commit_if_complete(storage, NAME, free, world_size) is None
    persist(storage, lives.snapshot(NAME, 1), free)
    assert commit_if_complete(storage, NAME, free, world_size) is None
    assert storage.size(NAME.manifest) is None


def whole(name: CheckpointName, rank: int, world_size: int) -> Snapshot:
    """A rank's snapshot without tensors."""
    return replace(lives.snapshot(name, 0), rank=rank, world_size=world_size, chunks=b"[]", attachments={}, sync={})


@pytest.mark.parametrize("order", ["in turn", "backwards", "at random"])
def test_ranks_look_for_each_other_without_a_square(
    storage: UnsyncedStorage, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """N ranks ask about N ln N times for a part, whoever comes first, and list no folder; the last one commits.

    Twice that is expected, since a rank asks for some parts at a time; the square of 200 would be 40,000.
    """
    count, asked = 200, 0
    ranks = {"in turn": range(count), "backwards": range(count - 1, -1, -1)}.get(order)
    ranks = random.Random(0).sample(range(count), count) if ranks is None else ranks
    original = storage.size

    def size(name: str) -> int | None:
        nonlocal asked
        asked += 1
        return original(name)

    monkeypatch.setattr(storage, "size", size)
    committed = []
    for rank in ranks:
        persist(storage, whole(NAME, rank, count), free)
        monkeypatch.setattr(storage, "list", lambda folder: pytest.fail(f"{folder} is listed"))
        committed.append(commit_if_complete(storage, NAME, free, count) is not None)
        monkeypatch.undo()
        monkeypatch.setattr(storage, "size", size)
    assert committed == [False] * (count - 1) + [True]
    assert count <= asked < 6 * count * math.log(count)


def test_committing_leaves_the_script_s_random_numbers_alone(storage: UnsyncedStorage) -> None:
    """Parts are looked for in random order, but not with the generator that the training draws from."""
    before = random.getstate()
    for rank in range(2):
        persist(storage, lives.snapshot(NAME, rank), free)
        commit_if_complete(storage, NAME, free, 2)
    assert random.getstate() == before


def test_committing_again_changes_nothing(storage: UnsyncedStorage) -> None:
    """Whoever comes later writes the same bytes."""
    for rank in range(2):
        persist(storage, lives.snapshot(NAME, rank), free)
    first = commit_if_complete(storage, NAME, free)
    data = storage.read(NAME.manifest)
    assert commit_if_complete(storage, NAME, free) == first == Manifest.from_bytes(data)
    assert storage.read(NAME.manifest) == data
    assert verify(storage, NAME) is None


@pytest.mark.parametrize("file", ["shards/rank-00001.safetensors", "pickles/rank-00000-env.pkl"])
@pytest.mark.parametrize("damage", ["short", "missing"])
def test_what_is_not_whole_is_not_committed(storage: UnsyncedStorage, tmp_path: Path, file: str, damage: str) -> None:
    """All parts are there, but a file that one of them lists is not as long as it says: an error that names it."""
    for rank in range(2):
        persist(storage, lives.snapshot(NAME, rank), free)
    if damage == "short":
        os.truncate(tmp_path / NAME.inside(file), 3)
    else:
        os.unlink(tmp_path / NAME.inside(file))
    with pytest.raises(CheckpointInvalid, match=file):
        commit_if_complete(storage, NAME, free)
    assert storage.size(NAME.manifest) is None


def test_all_ranks_at_once(storage: UnsyncedStorage) -> None:
    """Ranks that persist and look for each other at the same time: one commits, or both, the same; and it is whole."""
    for step in range(10, 110, 10):
        name = lives.name_of(step, 1)
        barrier = threading.Barrier(2)

        def save(rank: int, name: object = name, barrier: threading.Barrier = barrier) -> Manifest | None:
            barrier.wait()
            persist(storage, lives.snapshot(name, rank), free)  # type: ignore[arg-type]
            return commit_if_complete(storage, name, free, 2)  # type: ignore[arg-type]

        with ThreadPoolExecutor(2) as pool:
            manifests = [found for found in pool.map(save, range(2)) if found is not None]
        assert len(set(manifests)) == 1
        assert verify(storage, name) is None


def test_persisting_again_after_a_failure(storage: UnsyncedStorage) -> None:
    """A rank whose first try failed in the middle may try again; what it left is replaced."""
    for rank in range(2):
        with pytest.raises(StaleIncarnation):
            persist(storage, lives.snapshot(NAME, rank), over_at(2))
        persist(storage, lives.snapshot(NAME, rank), free)
    assert commit_if_complete(storage, NAME, free) is not None
    assert verify(storage, NAME) is None


# -- what is unchanged --------------------------------------------------------------------------------


def write_with_unchanged(storage: LocalStorage, step: int, frozen: int = 9, commit: bool = True) -> CheckpointName:
    name = lives.name_of(step, 1)
    for rank in range(2):
        persist(storage, lives.snapshot(name, rank, frozen=frozen), free)
    if commit:
        commit_if_complete(storage, name, free)
    return name


def second_file(storage: LocalStorage, name: CheckpointName, rank: int = 0) -> os.stat_result:
    return os.stat(storage.path(name.inside(names.unchanged_file(rank))))


def test_what_is_unchanged_is_written_once(storage: UnsyncedStorage) -> None:
    """A second tensor file with the digests that the checkpoint before has is the same file, for each rank its own; and
    whichever of the checkpoints goes, the others stay whole."""
    first, second, third = (write_with_unchanged(storage, step) for step in (10, 20, 30))
    for rank in range(2):
        assert second_file(storage, first, rank).st_ino == second_file(storage, third, rank).st_ino
        assert second_file(storage, third, rank).st_nlink == 3
    assert second_file(storage, first, 0).st_ino != second_file(storage, first, 1).st_ino
    storage.remove(first.folder)
    for name in (second, third):
        assert verify(storage, name) is None
    assert Part.from_bytes(storage.read(third.part(0))).to_bytes() == storage.read(third.part(0))


def test_what_has_changed_is_written_anew(storage: UnsyncedStorage) -> None:
    """Other digests, or another length, make another file, and the checkpoint before keeps its own."""
    first, second = write_with_unchanged(storage, 10), write_with_unchanged(storage, 20, frozen=8)
    assert second_file(storage, first).st_nlink == second_file(storage, second).st_nlink == 1
    assert verify(storage, first) is None
    assert verify(storage, second) is None


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS])
def test_where_files_can_not_have_two_names(
    storage: UnsyncedStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Each checkpoint has its own copy then, from memory: nothing is read back."""

    def fail(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source))

    first = write_with_unchanged(storage, 10)
    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr("shutil.copyfileobj", None)
    second = write_with_unchanged(storage, 20)
    assert second_file(storage, first).st_ino != second_file(storage, second).st_ino
    assert verify(storage, second) is None


def test_what_was_there_before_is_looked_for_in_several(storage: UnsyncedStorage) -> None:
    """The newest one may be without its part, damaged, or on its way out: an older one will do, or none."""
    first, second, third = (write_with_unchanged(storage, step, commit=False) for step in (10, 20, 30))
    storage.remove(third.part(0))
    storage.write(second.part(0), b"damaged")
    assert second_file(storage, write_with_unchanged(storage, 40)).st_ino == second_file(storage, first).st_ino
    for name in (first, second, third, lives.name_of(40, 1)):
        storage.remove(name.inside(names.unchanged_file(0)))
    fifth = write_with_unchanged(storage, 50)
    assert second_file(storage, fifth).st_nlink == 1
    assert verify(storage, fifth) is None


def test_what_another_life_wrote_is_read_first(storage: UnsyncedStorage) -> None:
    """A file that the disk has spoilt since does not become part of a new life's checkpoints; a right one does."""
    first = write_with_unchanged(storage, 10)
    with open(storage.path(first.inside(names.unchanged_file(1))), "r+b") as file:
        file.seek(4096)
        file.write(b"x")
    name = lives.name_of(20, 2)
    for rank in range(2):
        persist(storage, lives.snapshot(name, rank, frozen=9), free)
    assert commit_if_complete(storage, name, free) is not None
    assert verify(storage, name) is None
    assert second_file(storage, name, 0).st_ino == second_file(storage, first, 0).st_ino
    assert second_file(storage, name, 1).st_ino != second_file(storage, first, 1).st_ino


def test_room_is_needed_only_for_what_is_written(storage: UnsyncedStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a nearly full disk a checkpoint whose large file is linked is still written; one with a new file is not."""
    size = 10**6
    write_with_unchanged(storage, 10, frozen=size)
    monkeypatch.setattr(storage, "free_bytes", lambda: 64 * 1024 * 1024 + size // 2)
    assert verify(storage, write_with_unchanged(storage, 20, frozen=size)) is None
    with pytest.raises(StorageFull, match=r"needs 1\.\d MB"):
        write_with_unchanged(storage, 30, frozen=size + 1)
    assert not storage.list(lives.name_of(30, 1).parts)
