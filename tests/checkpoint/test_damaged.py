"""Every kind of damage: what is said of it, what is chosen instead, and where the damaged one goes.

Three checkpoints of two ranks, written by the real code; the newest is damaged. A row of the table says
what the cheap judgement says (None if only reading finds it), what verifying says, and what becomes
of the checkpoint when a run is restored: put "aside" with its reason, "skipped" and left where it is
(it was never committed), or "chosen" nevertheless.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.discover import Judged, complete_commits, judge, list_checkpoints, set_aside
from autoresume.checkpoint.verify import verify
from autoresume.errors import CheckpointInvalid, NoValidCheckpoint
from autoresume.format import names
from autoresume.format.digest import canonical, digest
from autoresume.format.names import CheckpointName
from autoresume.storage import LocalStorage
from tests.checkpoint.two_ranks import (
    MIDDLE,
    NEWEST,
    OLD,
    PART_0,
    PART_1,
    PICKLE_0,
    RUN_ID,
    SHARD_0,
    SHARD_1,
    assert_is,
    restore,
    write,
)
from tests.storage.forgetful import UnsyncedStorage


@pytest.fixture
def storage(tmp_path: Path) -> UnsyncedStorage:
    storage = UnsyncedStorage(tmp_path)
    for name in (OLD, MIDDLE, NEWEST):
        write(storage, name)
    return storage


# -- kinds of damage --------------------------------------------------------------------------------------

Damage = Callable[[Path], None]
"""Does it to the newest checkpoint's folder; its siblings are the older ones."""


def truncated(file: str, to: int | None = None) -> Damage:
    def damage(folder: Path) -> None:
        size = (folder / file).stat().st_size
        os.truncate(folder / file, size // 2 if to is None else to)

    return damage


def extended(file: str) -> Damage:
    def damage(folder: Path) -> None:
        with open(folder / file, "ab") as out:
            out.write(b"\0" * 10)

    return damage


def missing(file: str) -> Damage:
    return lambda folder: os.unlink(folder / file)


def flipped(file: str, at: int) -> Damage:
    def damage(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[at] ^= 4
        (folder / file).write_bytes(data)

    return damage


def zeroed(file: str) -> Damage:
    return lambda folder: (folder / file).write_bytes(bytes((folder / file).stat().st_size)) and None


def swapped(file: str, source: str | None = None, step: CheckpointName = MIDDLE) -> Damage:
    """Replaced with a file of another checkpoint, or (source) of another rank."""
    return lambda folder: shutil.copy(folder.parent / str(step) / (source or file), folder / file) and None


def a_folder(file: str) -> Damage:
    def damage(folder: Path) -> None:
        os.unlink(folder / file)
        (folder / file).mkdir()

    return damage


def together(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def added(file: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"somebody's notes")

    return damage


def rewritten(**changes: Any) -> Damage:
    """The manifest, changed and with a right digest: what another program, or another version, could write."""

    def damage(folder: Path) -> None:
        value = json.loads((folder / "manifest.json").read_bytes())
        value.pop("digest")
        value.update(changes)
        (folder / "manifest.json").write_bytes(canonical({**value, "digest": digest(canonical(value))}))

    return damage


def part_rewritten(change: Callable[[dict[str, Any]], object], rank: int = 1) -> Damage:
    """A rank's part, changed, and a manifest that lists the changed part: every digest is right."""

    def damage(folder: Path) -> None:
        file = folder / names.part_file(rank)
        part = json.loads(file.read_bytes())
        change(part)
        data = canonical(part)
        file.write_bytes(data)
        rows = json.loads((folder / "manifest.json").read_bytes())["parts"]
        rows[rank][1:3] = [len(data), digest(data)]
        rewritten(bytes=sum(row[1] + sum(size for _, size in row[3]) for row in rows), parts=rows)(folder)

    return damage


def listed(row: int, file: list[Any]) -> Damage:
    def damage(folder: Path) -> None:
        rows = json.loads((folder / "manifest.json").read_bytes())["parts"]
        rows[row][3][1] = file
        rewritten(parts=rows)(folder)

    return damage


def of_another_run(folder: Path) -> None:
    shutil.rmtree(folder)
    write(UnsyncedStorage(folder.parent.parent), NEWEST, run_id="another-run")


def replaced_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"no folder")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def never_committed(folder: Path) -> None:
    shutil.rmtree(folder)
    write(UnsyncedStorage(folder.parent.parent), NEWEST, commit=False)


def filled_with_another(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / str(MIDDLE), folder)


@dataclass(frozen=True)
class Row:
    damage: Damage
    judged: str | None
    """A piece of the cheap judgement's reason; None where it finds nothing."""
    verified: str | None
    then: str = "aside"


DIGEST = "does not have the digest"
TABLE = {
    # the manifest
    "manifest empty": Row(truncated("manifest.json", 0), "manifest is not JSON", "manifest is not JSON"),
    "manifest truncated": Row(truncated("manifest.json"), "manifest is not JSON", "manifest is not JSON"),
    "manifest flipped": Row(flipped("manifest.json", -5), "manifest's digest does not match", "manifest's digest"),
    "manifest zeroed": Row(zeroed("manifest.json"), "manifest is not JSON", "manifest is not JSON"),
    "manifest of another step": Row(swapped("manifest.json"), f"manifest is of {MIDDLE}", f"manifest is of {MIDDLE}"),
    "manifest is a folder": Row(a_folder("manifest.json"), "manifest.json", "manifest.json"),
    "manifest of another run": Row(of_another_run, "another run, another-run", "another run, another-run"),
    "manifest of a newer format": Row(rewritten(format_version=2), "newer autoresume", "newer autoresume"),
    "manifest lists a file outside": Row(listed(1, ["../../run.json", 5]), "'../../run.json'", "'../../run.json'"),
    "manifest lists files oddly": Row(listed(1, ["x"]), "malformed", "malformed"),
    "manifest lost, and nothing else": Row(
        missing("manifest.json"), "never committed: 2 parts", "never committed", "chosen"
    ),
    "all parts there, never committed": Row(never_committed, "never committed: 2 parts", "never committed", "chosen"),
    # parts
    "part empty": Row(truncated(PART_1, 0), f"{PART_1} has 0 bytes", f"{PART_1} has 0 bytes"),
    "part truncated": Row(truncated(PART_1), f"{PART_1} has ", f"{PART_1} has "),
    "part flipped": Row(flipped(PART_1, 40), f"{PART_1} {DIGEST}", f"{PART_1} {DIGEST}"),
    "part missing": Row(missing(PART_1), f"1 of its files are missing, e.g. {PART_1}", PART_1),
    "part of another step": Row(swapped(PART_0), f"{PART_0} {DIGEST}", f"{PART_0} {DIGEST}"),
    "part of another rank": Row(swapped(PART_1, PART_0, NEWEST), PART_1, PART_1),
    "part is a folder": Row(a_folder(PART_1), PART_1, PART_1),
    "part and manifest lost": Row(
        together(missing(PART_1), missing("manifest.json")), "never committed: 1 parts", "1 parts", "skipped"
    ),
    "part names another rank's shard": Row(
        part_rewritten(lambda part: part["shard"].update(name=SHARD_0)), SHARD_0, SHARD_0
    ),
    "part names a file outside": Row(
        part_rewritten(lambda part: part["attachments"]["env"].update(name="../../run.json")),
        "'../../run.json' is not a file inside",
        "'../../run.json' is not a file inside",
    ),
    "part of a newer format": Row(
        part_rewritten(lambda part: part.update(format_version=2)), "newer autoresume", "newer autoresume"
    ),
    "part with an unknown dtype": Row(
        part_rewritten(lambda part: part["chunks"][0].__setitem__(1, "float3")), None, "float3"
    ),
    "part with a tensor beyond the end": Row(
        part_rewritten(lambda part: part["chunks"][0].__setitem__(6, 2**40)), None, "outside of its shard"
    ),
    "part with a tree of unknown types": Row(
        part_rewritten(lambda part: part["tree"].update(counter={"$": "os.system", "items": ["x"]}), 0), None, None
    ),
    "part with a tree that names no tensor": Row(
        part_rewritten(lambda part: part["tree"].update(counter={"$": "tensor", "key": "nowhere"}), 0), None, None
    ),
    "part with no tree": Row(part_rewritten(lambda part: part.update(tree=None), 0), None, None),
    "part with a tensor that is not covered": Row(part_rewritten(lambda part: part.update(chunks=[]), 0), None, None),
    # shards
    "shard empty": Row(truncated(SHARD_0, 0), f"{SHARD_0} has 0 bytes", f"{SHARD_0} has 0 bytes"),
    "shard truncated": Row(truncated(SHARD_0), f"{SHARD_0} has ", f"{SHARD_0} has "),
    "shard longer": Row(extended(SHARD_0), f"{SHARD_0} has ", f"{SHARD_0} has "),
    "shard missing": Row(missing(SHARD_0), f"1 of its files are missing, e.g. {SHARD_0}", SHARD_0),
    "all shards missing": Row(
        together(missing(SHARD_0), missing(SHARD_1)), f"2 of its files are missing, e.g. {SHARD_0}", SHARD_0
    ),
    "shard flipped in its header": Row(flipped(SHARD_0, 20), None, f"{SHARD_0} of {NEWEST} is damaged between byte 0"),
    "shard flipped in its data": Row(flipped(SHARD_0, 4096), None, f"{SHARD_0} of {NEWEST} is damaged between byte 0"),
    "another rank's shard flipped": Row(flipped(SHARD_1, -1), None, f"{SHARD_1} of {NEWEST} is damaged"),
    "shard zeroed": Row(zeroed(SHARD_0), None, f"{SHARD_0} of {NEWEST} is damaged"),
    "shard of another step": Row(swapped(SHARD_0), None, f"{SHARD_0} of {NEWEST} is damaged"),
    # pickles
    "pickle missing": Row(missing(PICKLE_0), f"e.g. {PICKLE_0}", PICKLE_0),
    "pickle empty": Row(truncated(PICKLE_0, 0), f"{PICKLE_0} has 0 bytes", PICKLE_0),
    "pickle flipped": Row(flipped(PICKLE_0, 3), None, f"{PICKLE_0} of {NEWEST} is damaged"),
    "pickle of another step": Row(swapped(PICKLE_0), None, f"{PICKLE_0} of {NEWEST} is damaged"),
    # folders
    "renamed from another step": Row(filled_with_another, f"manifest is of {MIDDLE}", f"manifest is of {MIDDLE}"),
    "folder empty": Row(emptied, "never committed: 0 parts", "never committed", "skipped"),
    "folder is a file": Row(replaced_by_a_file, str(NEWEST), str(NEWEST), "skipped"),
    "no manifest, and a part is a folder": Row(
        together(missing("manifest.json"), a_folder(PART_1)), "never committed", "never committed", "skipped"
    ),
    "no manifest, and a torn part": Row(
        together(missing("manifest.json"), truncated(PART_1)), "never committed", "never committed", "skipped"
    ),
    "no manifest, and a short shard": Row(
        together(missing("manifest.json"), truncated(SHARD_1)), "never committed", "never committed", "skipped"
    ),
    "no manifest, and a part that names another rank's shard": Row(
        together(part_rewritten(lambda part: part["shard"].update(name=SHARD_0)), missing("manifest.json")),
        "never committed",
        "never committed",
        "skipped",
    ),
    # no damage
    "files of somebody else inside": Row(
        together(added("notes.txt"), added("parts/notes.txt"), added("parts/rank-00000.json.1-ab.tmp"), added("x/y")),
        None,
        None,
        "chosen",
    ),
    "a part too many": Row(swapped("parts/rank-00002.json", PART_1, NEWEST), None, None, "chosen"),
    "untouched": Row(lambda folder: None, None, None, "chosen"),
}


@pytest.mark.parametrize("row", [pytest.param(row, id=kind) for kind, row in TABLE.items()])
def test_damage(storage: UnsyncedStorage, row: Row, tmp_path: Path) -> None:
    """Each damage is named with the file that it is in; the next checkpoint is chosen; nothing is deleted."""
    folder = tmp_path / NEWEST.folder
    row.damage(folder)
    before = contents(folder)

    judged = judge(storage, NEWEST, RUN_ID)
    assert (judged.problem is None) == (row.judged is None), judged.problem
    assert row.judged is None or row.judged in str(judged.problem)
    reason = verify(storage, NEWEST, RUN_ID)
    assert (reason is None) == (row.verified is None), reason
    assert row.verified is None or row.verified in str(reason)
    assert contents(folder) == before, "judging changes nothing"

    restored = restore(storage)
    aside = tmp_path / "aside" / str(NEWEST)
    if row.then == "chosen":
        assert_is(restored, NEWEST)
        assert restored is not None
        assert restored.rejected == []
        return
    assert_is(restored, MIDDLE)
    assert restored is not None
    assert len(restored.rejected) == 1
    assert restored.rejected[0].startswith(f"{NEWEST}: ")
    if row.then == "skipped":
        assert contents(folder) == before
        assert not (tmp_path / "aside").exists()
    else:
        assert not folder.exists()
        told = (aside / "reason.txt").read_text()
        assert told == restored.rejected[0].removeprefix(f"{NEWEST}: ") + "\n"
        assert row.judged is None or row.judged in told
        assert {name: data for name, data in contents(aside).items() if name != "reason.txt"} == before
    assert verify(storage, MIDDLE, RUN_ID) is None
    assert_is(restore(storage), MIDDLE)


def contents(folder: Path) -> dict[str, bytes]:
    if folder.is_file():
        return {"": folder.read_bytes()}
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_infinite_time_is_a_damaged_manifest(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """One byte ("." to "e") makes a number that JSON can't spell of a time: a damaged manifest, not a crash."""
    manifest = tmp_path / NEWEST.manifest
    manifest.write_bytes(manifest.read_bytes().replace(b'"time":1.0', b'"time":1e999'))
    assert "manifest" in str(judge(storage, NEWEST, RUN_ID).problem)
    assert_is(restore(storage), MIDDLE)


# -- more than one ----------------------------------------------------------------------------------------


def test_the_next_one_may_be_damaged_too(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """Every damaged checkpoint is put aside, newest first, until one is whole."""
    flipped(SHARD_0, 4096)(tmp_path / NEWEST.folder)
    missing(PART_0)(tmp_path / MIDDLE.folder)
    restored = restore(storage)
    assert_is(restored, OLD)
    assert restored is not None
    assert [line.split(":")[0] for line in restored.rejected] == [str(NEWEST), str(MIDDLE)]
    assert storage.list("aside") == sorted([str(NEWEST), str(MIDDLE)])
    assert list_checkpoints(storage) == [OLD]


def test_nothing_left_is_an_error_that_names_all(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """When none can be restored: NoValidCheckpoint with every reason, now and at the next start; never from scratch. All
    of them stay where they are, since it may be the storage that fails."""
    truncated("manifest.json", 0)(tmp_path / OLD.folder)
    flipped(SHARD_0, 4096)(tmp_path / MIDDLE.folder)
    missing(SHARD_1)(tmp_path / NEWEST.folder)
    with pytest.raises(NoValidCheckpoint) as caught:
        restore(storage)
    for piece in (f"{OLD}: ", "manifest", f"{MIDDLE}: ", SHARD_0, f"{NEWEST}: ", SHARD_1, "not started from scratch"):
        assert piece in str(caught.value)
    assert storage.list("aside") == []
    assert list_checkpoints(storage) == [NEWEST, MIDDLE, OLD]
    with pytest.raises(NoValidCheckpoint, match="left where they are"):
        restore(storage)


def test_a_checkpoint_moved_back_is_restored(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """What the error advises works: a whole checkpoint that is moved back is chosen."""
    for name in (MIDDLE, NEWEST):
        missing(PART_0)(tmp_path / name.folder)
    shutil.move(tmp_path / OLD.folder, tmp_path / "safe")
    with pytest.raises(NoValidCheckpoint):
        restore(storage)
    shutil.move(tmp_path / "safe", tmp_path / OLD.folder)
    assert_is(restore(storage), OLD)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda root: None, id="nothing at all"),
        pytest.param(lambda root: (root / "checkpoints").mkdir(), id="an empty folder of checkpoints"),
        pytest.param(
            lambda root: (root / "checkpoints" / "E0_U10_S80-0001").mkdir(parents=True), id="an empty checkpoint"
        ),
        pytest.param(
            lambda root: (root / "checkpoints" / "my backup").mkdir(parents=True), id="a folder of the user's"
        ),
        pytest.param(
            lambda root: persist_one_rank_only(UnsyncedStorage(root)), id="a save that was killed before rank 1's part"
        ),
    ],
)
def test_a_run_that_never_had_one_begins_from_scratch(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """None, and no error, as long as nothing was ever committed; nothing is deleted or moved."""
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert restore(UnsyncedStorage(tmp_path)) is None
    assert sorted(tmp_path.rglob("*")) == before


def persist_one_rank_only(storage: LocalStorage) -> None:
    write(storage, OLD, commit=False)
    storage.remove(OLD.part(1))


@pytest.mark.parametrize("times", [1, 3])
def test_a_listing_that_is_old(storage: UnsyncedStorage, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """A node that keeps listings for a while, as NFS does, may list only checkpoints that were pruned since: it looks
    again until it sees what replaced them, and does not begin from scratch."""
    monkeypatch.setattr("autoresume.load.candidates._LOOK_AGAIN_SECONDS", 0.001)
    original, asked = storage.list, 0

    def late(folder: str) -> list[str]:
        nonlocal asked
        if folder != names.CHECKPOINTS:
            return original(folder)
        asked += 1
        return ["E0_U5_S40-0001"] if asked <= 2 * times else original(folder)

    monkeypatch.setattr(storage, "list", late)
    restored = restore(storage)
    assert_is(restored, NEWEST)
    assert restored is not None
    assert len(restored.rejected) == 1  # told once, however often it looked


def test_a_listing_that_stays_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For ever nobody waits: what is listed and never was committed is no checkpoint."""
    monkeypatch.setattr("autoresume.load.candidates._LOOK_AGAIN_SECONDS", 0.001)
    monkeypatch.setattr("autoresume.load.candidates.VISIBLE_SECONDS", 0.01)
    storage = UnsyncedStorage(tmp_path)
    monkeypatch.setattr(storage, "list", lambda folder: ["E0_U5_S40-0001"] if folder == names.CHECKPOINTS else [])
    assert restore(storage) is None


def test_folders_that_are_not_named_like_checkpoints_are_left_alone(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """Copies and notes of the user's lie beside the checkpoints, are never chosen, and stay."""
    foreign = ["latest", f"{NEWEST}.bak", "E0_U99_S0-1", "E0_U099_S0-0001", "e0_U99_S0-0001", f"{NEWEST}.12ab.tmp"]
    for name in foreign:
        shutil.copytree(tmp_path / NEWEST.folder, tmp_path / "checkpoints" / name)
    assert_is(restore(storage), NEWEST)
    assert set(foreign) <= set(os.listdir(tmp_path / "checkpoints"))


def test_an_unreadable_leftover_does_not_stop_the_run(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """What can't even be read, and was never committed, is skipped when commits are completed."""
    missing("manifest.json")(tmp_path / NEWEST.folder)
    a_folder(PART_0)(tmp_path / NEWEST.folder)
    assert complete_commits(storage, lambda: None) == []


def test_completing_commits(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """What a dead life had finished writing is committed, newest first, with the manifest it would have had."""
    manifests = {name: storage.read(name.manifest) for name in (OLD, MIDDLE, NEWEST)}
    for name in (OLD, NEWEST):
        storage.remove(name.manifest)
    assert complete_commits(storage, lambda: None) == [NEWEST, OLD]
    assert {name: storage.read(name.manifest) for name in manifests} == manifests
    assert complete_commits(storage, lambda: None) == []


# -- putting aside ----------------------------------------------------------------------------------------


def test_putting_aside_again_keeps_both(storage: UnsyncedStorage) -> None:
    """A checkpoint of a name that lies aside already gets a number; neither is overwritten."""
    for attempt in range(3):
        write(storage, NEWEST)
        where = set_aside(storage, Judged(NEWEST, None, f"problem {attempt}"))
        assert where == f"aside/{NEWEST}" + (f".{attempt}" if attempt else "")
        assert storage.read(f"{where}/reason.txt") == f"problem {attempt}\n".encode()
    assert len(storage.list("aside")) == 3
    assert list_checkpoints(storage) == [MIDDLE, OLD]


def test_an_emptied_aside_folder_is_no_obstacle(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """A user who empties aside/NAME does not stop the next restore."""
    (tmp_path / "aside" / str(NEWEST)).mkdir(parents=True)
    missing(PART_0)(tmp_path / NEWEST.folder)
    assert_is(restore(storage), MIDDLE)


# -- a foreign run ----------------------------------------------------------------------------------------


def test_without_a_run_id_a_foreign_checkpoint_is_valid(storage: UnsyncedStorage) -> None:
    """Whether a checkpoint is whole does not depend on whose it is."""
    assert judge(storage, NEWEST).problem is None
    assert verify(storage, NEWEST) is None
    assert "the-run" in str(judge(storage, NEWEST, "mine").problem)


def test_the_guard_stops_completing(storage: UnsyncedStorage) -> None:
    """A life that is over completes nothing."""
    storage.remove(NEWEST.manifest)

    def over() -> None:
        raise CheckpointOver

    with pytest.raises(CheckpointOver):
        complete_commits(storage, over)
    assert storage.size(NEWEST.manifest) is None


class CheckpointOver(Exception):
    pass


def test_parts_that_contradict_each_other_are_not_committed(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """Parts of two runs in one folder: an error that says so, and no manifest."""
    write(UnsyncedStorage(tmp_path / "elsewhere"), NEWEST, run_id="another-run")
    shutil.copy(tmp_path / "elsewhere" / NEWEST.part(1), tmp_path / NEWEST.part(1))
    storage.remove(NEWEST.manifest)
    with pytest.raises(CheckpointInvalid, match="ranks 0 and 1 are of different checkpoints"):
        commit_if_complete(storage, NEWEST, lambda: None)
    assert storage.size(NEWEST.manifest) is None


def test_a_part_under_another_s_name_is_not_committed(storage: UnsyncedStorage, tmp_path: Path) -> None:
    """A part must say the rank, the step and everything else of the name that it lies under."""
    other = replace(NEWEST, samples=NEWEST.samples + 1)
    shutil.copytree(tmp_path / NEWEST.folder, tmp_path / other.folder)
    storage.remove(other.manifest)
    with pytest.raises(CheckpointInvalid, match="says that it is"):
        commit_if_complete(storage, other, lambda: None)
