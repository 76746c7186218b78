"""The storage that forgets must forget: each law of durable writing, broken on purpose, is seen to be broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.storage.forgetful import STRICT, VARIANTS, ForgetfulStorage, Variant


@pytest.fixture
def storage(tmp_path: Path) -> ForgetfulStorage:
    with ForgetfulStorage(tmp_path / "disk") as storage:
        yield storage


def after(storage: ForgetfulStorage, target: Path, variant: Variant = STRICT) -> dict[str, bytes]:
    """All files that are left after a power failure now."""
    root = storage.freeze().rebuild(target, variant)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def sync_file(storage: ForgetfulStorage, name: str) -> None:
    descriptor = os.open(storage.root / name, os.O_RDONLY)
    storage._sync_file(descriptor, storage.root / name)
    os.close(descriptor)


def test_what_was_never_synced_is_gone(storage: ForgetfulStorage, tmp_path: Path) -> None:
    """A file that was only written has neither name nor content."""
    (storage.root / "a").write_bytes(b"content")
    assert after(storage, tmp_path / "after") == {}


def test_a_synced_file_without_a_synced_folder_has_no_name(storage: ForgetfulStorage, tmp_path: Path) -> None:
    """fsync of a file does not make its name durable."""
    (storage.root / "a").write_bytes(b"content")
    sync_file(storage, "a")
    assert after(storage, tmp_path / "after") == {}


def test_a_synced_folder_without_a_synced_file_has_no_content(storage: ForgetfulStorage, tmp_path: Path) -> None:
    """fsync of a folder does not make content durable: the classic empty file after a rename."""
    (storage.root / "a.tmp").write_bytes(b"content")
    os.rename(storage.root / "a.tmp", storage.root / "a")
    storage._sync_folder(storage.root)
    assert after(storage, tmp_path / "lost") == {"a": b""}
    assert after(storage, tmp_path / "kept", Variant("kept", "kept")) == {"a": b"content"}
    assert after(storage, tmp_path / "torn", Variant("kept", "torn")) == {"a": b"con"}
    assert after(storage, tmp_path / "zeros", Variant("kept", "zeros")) == {"a": bytes(7)}
    garbage = after(storage, tmp_path / "garbage", Variant("kept", "garbage"))["a"]
    assert len(garbage) == 7
    assert garbage != b"content"


def test_an_unsynced_rename_leaves_the_old_content(storage: ForgetfulStorage, tmp_path: Path) -> None:
    """A name that was replaced, and not synced, still has the old file after the crash."""
    storage.write("a", b"old")
    (storage.root / "b").write_bytes(b"new")
    sync_file(storage, "b")
    os.rename(storage.root / "b", storage.root / "a")
    assert after(storage, tmp_path / "dropped") == {"a": b"old"}
    assert after(storage, tmp_path / "kept", Variant("kept", "lost")) == {"a": b"new"}


def test_a_folder_that_was_made_and_not_synced_takes_its_files_with_it(
    storage: ForgetfulStorage, tmp_path: Path
) -> None:
    """A file that is synced in a synced folder is lost when that folder's own name was not synced."""
    (storage.root / "folder").mkdir()
    (storage.root / "folder" / "a").write_bytes(b"content")
    sync_file(storage, "folder/a")
    storage._sync_folder(storage.root / "folder")
    assert after(storage, tmp_path / "before") == {}
    storage._sync_folder(storage.root)
    assert after(storage, tmp_path / "after") == {"folder/a": b"content"}


def test_a_deleted_file_may_come_back(storage: ForgetfulStorage, tmp_path: Path) -> None:
    """Deleting without a sync may be undone by the crash, also when its inode would have been used again."""
    storage.write("a", b"old")
    os.unlink(storage.root / "a")
    (storage.root / "b").write_bytes(b"other")
    assert after(storage, tmp_path / "dropped") == {"a": b"old"}
    assert after(storage, tmp_path / "kept", Variant("kept", "kept")) == {"b": b"other"}


def test_what_was_appended_after_a_sync_is_at_stake(storage: ForgetfulStorage, tmp_path: Path) -> None:
    """Of a file that grew, what was synced stays, and the rest is lost, torn or garbage."""
    storage.write("a", b"synced")
    with open(storage.root / "a", "ab") as file:
        file.write(b"more")
    assert after(storage, tmp_path / "lost") == {"a": b"synced"}
    assert after(storage, tmp_path / "torn", Variant("kept", "torn")) == {"a": b"syncedmo"}
    assert after(storage, tmp_path / "zeros", Variant("kept", "zeros")) == {"a": b"synced\0\0\0\0"}
    storage.sync("a")
    assert after(storage, tmp_path / "synced") == {"a": b"syncedmore"}


def test_mixed_names_come_out_in_many_ways(storage: ForgetfulStorage, tmp_path: Path) -> None:
    """With "mixed", each unsynced name is there or not by chance: nothing is promised about their order."""
    for name in "abcd":
        (storage.root / name).write_bytes(b"x")
    disk = storage.freeze()
    outcomes = {
        tuple(sorted(os.listdir(disk.rebuild(tmp_path / str(n), Variant("mixed", "kept", n))))) for n in range(40)
    }
    assert len(outcomes) > 8


def test_the_moment_of_freezing_is_what_counts(storage: ForgetfulStorage, tmp_path: Path) -> None:
    """What a program does between the crash and its end (cleaning up, syncing) does not reach the disk."""
    storage.write("a", b"old")
    disk = storage.freeze()
    storage.write("a", b"new")
    storage.write("b", b"new")
    for variant in VARIANTS:
        root = disk.rebuild(tmp_path / str(variant), variant)
        assert {path.name: path.read_bytes() for path in root.iterdir()} == {"a": b"old"}


def test_what_was_there_counts_as_durable(tmp_path: Path) -> None:
    """A storage over an existing folder begins with all of it on the disk."""
    (tmp_path / "disk" / "sub").mkdir(parents=True)
    (tmp_path / "disk" / "sub" / "a").write_bytes(b"content")
    with ForgetfulStorage(tmp_path / "disk") as storage:
        assert after(storage, tmp_path / "after") == {"sub/a": b"content"}
