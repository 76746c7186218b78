"""What is kept, what is deleted, and that the one never becomes the other."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.committed import committed_checkpoints, prune_after_commit
from autoresume.checkpoint.persist import persist
from autoresume.checkpoint.retain import Committed, Keep, collect_garbage, collect_unpublished, prune, superfluous
from autoresume.checkpoint.verify import verify
from autoresume.errors import StaleIncarnation, StorageFailed
from autoresume.format.names import CheckpointName
from autoresume.storage import LocalStorage
from tests.checkpoint import lives
from tests.storage.forgetful import UnsyncedStorage

# -- choosing -----------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> list[Committed]:
    """Checkpoints as a run makes them: steps grow, incarnations never fall, clocks may jump."""
    found, step, incarnation, time = [], 0, 1, 1.7e9
    for _ in range(draw(st.integers(0, 25))):
        step += draw(st.integers(1, 60))
        incarnation += draw(st.sampled_from([0, 0, 0, 1]))
        time += draw(st.sampled_from([10.0, 600.0, 3000.0, 8000.0, -500.0]))
        found.append(Committed(CheckpointName(step, incarnation, 0, step), time))
    return found


keeps = st.builds(
    Keep,
    last=st.integers(1, 6),
    every_steps=st.none() | st.integers(1, 200),
    every_seconds=st.none() | st.sampled_from([1.0, 3600.0, 86400.0]),
)


def names_of(committed: list[Committed]) -> list[CheckpointName]:
    return [one.name for one in committed]


@given(histories(), keeps, st.randoms(use_true_random=False))
def test_the_newest_are_never_deleted(history: list[Committed], keep: Keep, random: object) -> None:
    """The last N stay, whatever else is asked for, and whatever order they are listed in."""
    gone = superfluous(history, keep)
    assert not set(gone) & set(names_of(history)[-keep.last :])
    assert gone == sorted(gone)
    shuffled = list(history)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert superfluous(shuffled, keep) == gone


@given(histories(), st.integers(-2, 6))
def test_without_permanent_ones_exactly_the_last_stay(history: list[Committed], last: int) -> None:
    """Nothing but the last N stays; fewer than one is never kept, since the newest is what a run resumes from."""
    stays = [name for name in names_of(history) if name not in superfluous(history, Keep(last=last))]
    assert stays == names_of(history)[-max(1, last) :]


@given(histories(), st.integers(1, 200), st.integers(1, 3))
def test_the_first_of_each_interval_of_steps_is_permanent(history: list[Committed], every: int, last: int) -> None:
    """With every_steps=N, of each N steps from N on the first checkpoint stays for ever."""
    gone = set(superfluous(history, Keep(last=last, every_steps=every)))
    first: dict[int, CheckpointName] = {}
    for name in names_of(history):
        first.setdefault(name.step // every, name)
    for interval, name in first.items():
        assert interval == 0 or name not in gone
    permanent = {name for interval, name in first.items() if interval > 0}
    assert gone == set(names_of(history)[: -last or None]) - permanent


@given(histories(), st.sampled_from([600.0, 3600.0, 86400.0]), st.integers(1, 3))
def test_permanent_ones_are_spaced_in_time(history: list[Committed], every: float, last: int) -> None:
    """With every_seconds=T, from any checkpoint to the permanent one before it is less than T, and not much is kept."""
    gone = set(superfluous(history, Keep(last=last, every_seconds=every)))
    permanent = [one for one in history[: -last or None] if one.name not in gone]
    assert all(later.time - earlier.time >= every for earlier, later in itertools.pairwise(permanent))
    for at, one in enumerate(history):
        before = [other.time for other in history[: at + 1] if other.name not in gone]
        assert before, "the first of a run is permanent"
        assert one.time - max(before) < every


@given(histories(), keeps)
def test_pruning_twice_is_pruning_once(history: list[Committed], keep: Keep) -> None:
    """What stayed is not superfluous the next time: nothing changes until a new checkpoint is committed."""
    gone = set(superfluous(history, keep))
    assert superfluous([one for one in history if one.name not in gone], keep) == []


@given(histories(), keeps)
def test_what_is_permanent_stays_so(history: list[Committed], keep: Keep) -> None:
    """Pruning after each commit keeps exactly what pruning once at the end would: permanent is for ever."""
    left: list[Committed] = []
    for one in history:
        left.append(one)
        gone = set(superfluous(left, keep))
        assert one.name not in gone
        left = [other for other in left if other.name not in gone]
    gone = set(superfluous(history, keep))
    assert left == [one for one in history if one.name not in gone]


# -- deleting -----------------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path: Path) -> UnsyncedStorage:
    return UnsyncedStorage(tmp_path)


def free() -> None:
    """A guard that lets everything pass."""


def write(storage: LocalStorage, name: CheckpointName, ranks: int = 2, run_id: str = lives.RUN_ID) -> CheckpointName:
    """A checkpoint of which `ranks` of two ranks persisted; committed if both did."""
    for rank in range(ranks):
        persist(storage, lives.snapshot(name, rank, run_id=run_id), free)
    assert (commit_if_complete(storage, name, free) is not None) == (ranks == 2)
    return name


def test_prune_deletes_whole_folders(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """What is superfluous is gone with all its files, oldest first; the rest is whole; nothing else is touched."""
    made = [write(storage, lives.name_of(step, 1)) for step in (10, 20, 30, 40)]
    unfinished = write(storage, lives.name_of(5, 1), ranks=1)
    storage.write("checkpoints/notes.txt", b"the user's")
    gone = prune(storage, committed_checkpoints(storage), Keep(last=2), free)
    assert gone == made[:2]
    assert set(os.listdir(tmp_path / "checkpoints")) == {str(made[2]), str(made[3]), str(unfinished), "notes.txt"}
    assert [verify(storage, name) for name in made[2:]] == [None, None]


def test_nothing_is_deleted_once_the_life_is_over(storage: UnsyncedStorage) -> None:
    """The guard is asked before each deletion: a stale incarnation deletes nothing more."""
    made = [write(storage, lives.name_of(step, 1)) for step in (10, 20, 30, 40)]
    asked = 0

    def over_at_the_second() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise StaleIncarnation("a newer one")

    with pytest.raises(StaleIncarnation):
        prune(storage, committed_checkpoints(storage), Keep(last=1), over_at_the_second)
    assert [one.name for one in committed_checkpoints(storage)] == made[:0:-1]


def test_damaged_manifests_are_neither_counted_nor_deleted(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """A checkpoint whose manifest can't be read does not push out a good one, and stays to be looked at."""
    made = [write(storage, lives.name_of(step, 1)) for step in (10, 20, 30)]
    (tmp_path / made[2].manifest).write_bytes(b"damaged")
    assert [one.name for one in committed_checkpoints(storage)] == [made[1], made[0]]
    assert prune(storage, committed_checkpoints(storage), Keep(last=2), free) == []
    assert prune(storage, committed_checkpoints(storage), Keep(last=1), free) == [made[0]]
    assert set(storage.list("checkpoints")) == {str(made[1]), str(made[2])}


def test_checkpoints_of_another_run_are_not_pruned(storage: UnsyncedStorage) -> None:
    """Only this run's own folders are touched: somebody's checkpoint that was copied in is not ours to delete."""
    foreign = write(storage, lives.name_of(5, 1), run_id="another-run")
    for step in (10, 20, 30):
        name = write(storage, lives.name_of(step, 2))
        prune_after_commit(storage, name, Keep(last=2), free, collected=True)
    assert set(storage.list("checkpoints")) == {str(foreign), str(lives.name_of(20, 2)), str(lives.name_of(30, 2))}


def test_garbage_of_dead_lives_is_collected(storage: UnsyncedStorage) -> None:
    """Uncommitted folders of older incarnations and temporary names go; everything else stays."""
    committed = write(storage, lives.name_of(10, 1))
    dead = [write(storage, lives.name_of(20, 1), ranks=1), write(storage, lives.name_of(15, 2), ranks=1)]
    (storage.root / lives.name_of(25, 1).folder).mkdir()
    ours = write(storage, lives.name_of(30, 3), ranks=1)
    newer = write(storage, lives.name_of(30, 4), ranks=1)
    storage.write(f"checkpoints/{lives.name_of(5, 1)}.12ab.tmp/manifest.json", b"half deleted")
    storage.write("checkpoints/notes/file", b"the user's")
    gone = collect_garbage(storage, 3, free)
    assert set(gone) == {*(str(name) for name in dead), str(lives.name_of(25, 1)), f"{lives.name_of(5, 1)}.12ab.tmp"}
    assert set(storage.list("checkpoints")) == {str(committed), str(ours), str(newer), "notes"}
    assert collect_garbage(storage, 3, free) == []


def test_garbage_is_not_collected_once_the_life_is_over(storage: UnsyncedStorage) -> None:
    """A stale incarnation collects nothing."""
    dead = write(storage, lives.name_of(20, 1), ranks=1)

    def over() -> None:
        raise StaleIncarnation("a newer one")

    with pytest.raises(StaleIncarnation):
        collect_garbage(storage, 2, over)
    assert storage.list("checkpoints") == [str(dead)]


def test_settling(storage: UnsyncedStorage) -> None:
    """After a commit: older ones pruned, and the dead lives' garbage collected once, not again and again."""
    dead = write(storage, lives.name_of(10, 1), ranks=1)
    made = [write(storage, lives.name_of(step, 2)) for step in (20, 30, 40)]
    prune_after_commit(storage, made[-1], Keep(last=2), free, collected=True)
    assert storage.list("checkpoints") == [str(name) for name in (dead, *made[1:])]
    prune_after_commit(storage, made[-1], Keep(last=2), free, collected=False)
    assert storage.list("checkpoints") == [str(name) for name in made[1:]]


def test_what_can_not_be_deleted_does_not_undo_the_commit(
    storage: UnsyncedStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing deletion is warned about, and the commit stands; it is tried again after the next one."""
    made = [write(storage, lives.name_of(step, 1)) for step in (10, 20, 30)]

    def fail(*arguments: object) -> None:
        raise PermissionError("not yours")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        prune_after_commit(storage, made[-1], Keep(last=1), free, collected=True)
    assert "could not be deleted: not yours" in caplog.text
    assert verify(storage, made[-1]) is None
    prune_after_commit(storage, made[-1], Keep(last=1), free, collected=True)
    assert storage.list("checkpoints") == [str(made[-1])]


# -- what could not be written --------------------------------------------------------------------------


def test_what_failed_is_deleted_after_the_next_commit(tmp_path: Path) -> None:
    """What this life began and could not write whole goes with the next commit; newer saves stay, and older lives'."""
    storage = UnsyncedStorage(tmp_path)
    older_life, failed, begun = lives.name_of(10, 1), lives.name_of(20, 2), lives.name_of(40, 2)
    for name in (older_life, failed, begun):
        persist(storage, lives.snapshot(name, 1), lambda: None)
    committed = lives.name_of(30, 2)
    for rank in range(2):
        persist(storage, lives.snapshot(committed, rank), lambda: None)
    commit_if_complete(storage, committed, lambda: None)
    prune_after_commit(storage, committed, Keep(), lambda: None, collected=True)
    assert storage.list("checkpoints") == sorted(map(str, (older_life, committed, begun)))


def test_a_rank_that_fails_deletes_what_nobody_can_complete(tmp_path: Path) -> None:
    """The checkpoint at hand, and older ones that it could not write; not the one before, which may be in work."""
    storage = UnsyncedStorage(tmp_path)
    for step in (10, 20, 30, 40, 50):
        persist(storage, lives.snapshot(lives.name_of(step, 1), 1), lambda: None)
    for step in (20, 30):
        persist(storage, lives.snapshot(lives.name_of(step, 1), 0), lambda: None)
    commit_if_complete(storage, lives.name_of(30, 1), lambda: None)
    (tmp_path / lives.name_of(50, 1).shard(0)).mkdir()  # the disk fails: nothing can be renamed to it
    with pytest.raises(StorageFailed, match=f"{lives.name_of(30, 1)} stays the last good checkpoint"):
        persist(storage, lives.snapshot(lives.name_of(50, 1), 0), lambda: None)
    left = [lives.name_of(step, 1) for step in (20, 30, 40)]  # complete, committed, and perhaps in work
    assert storage.list("checkpoints") == sorted(map(str, left))


def test_a_rank_whose_life_is_over_deletes_nothing(tmp_path: Path) -> None:
    """Also not what it failed to write."""
    storage = UnsyncedStorage(tmp_path)
    name = lives.name_of(10, 1)
    asked = []

    def guard() -> None:
        asked.append(None)
        if len(asked) > 1:
            raise StaleIncarnation("a newer one")

    (tmp_path / name.shard(0)).mkdir(parents=True)
    with pytest.raises(StorageFailed):
        persist(storage, lives.snapshot(name, 0), guard)
    assert storage.list("checkpoints") == [str(name)]


def test_what_was_never_published_is_deleted_at_the_start(tmp_path: Path) -> None:
    """Torn records and side files of dead processes go; whatever else is called .tmp, and this life's own, stays."""
    storage = UnsyncedStorage(tmp_path)
    token = "1a2b-0123abcd.tmp"
    torn = [f"incarnations/0001.alive.{token}", f"incarnations/0002.json.{token}"]
    torn += [f"files/best.pt.{token}", f"files/more/last.pt.{token}"]
    kept = [f"incarnations/0003.alive.{token}", "files/mine.tmp", "files/best.pt", "notes.tmp", f"notes.{token}"]
    for file in torn + kept:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"torn")
    assert sorted(collect_unpublished(storage, 3, lambda: None)) == sorted(torn)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(kept)
