"""A small checkpoint with each of its bytes flipped in turn, cut at each length, and with each file exchanged.

It is noticed by judging, or by reading for one of the ranks, and by verifying in any case; what is said
names the file; and a restore takes the checkpoint before it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoresume.checkpoint.discover import judge
from autoresume.checkpoint.verify import verify
from autoresume.errors import CheckpointInvalid
from autoresume.format.names import CheckpointName
from autoresume.load.read_checkpoint import read_without_ranks
from autoresume.storage import LocalStorage
from tests.checkpoint.two_ranks import MIDDLE, NEWEST, OLD, RUN_ID, assert_is, restore, write
from tests.storage.forgetful import UnsyncedStorage

FILES = [
    "manifest.json",
    "parts/rank-00000.json",
    "parts/rank-00001.json",
    "pickles/rank-00000-env.pkl",
    "pickles/rank-00001-env.pkl",
    "shards/rank-00000.safetensors",
    "shards/rank-00001.safetensors",
]


@pytest.fixture
def storage(memory: Path) -> UnsyncedStorage:
    storage = UnsyncedStorage(memory)
    for name in (OLD, MIDDLE, NEWEST):
        write(storage, name)
    found = sorted(
        str(path.relative_to(memory / NEWEST.folder)) for path in (memory / NEWEST.folder).rglob("*") if path.is_file()
    )
    assert found == FILES
    return storage


def noticed_by_reading(storage: LocalStorage, name: CheckpointName) -> str | None:
    """What judging says, or what one of the two ranks says that reads all it needs."""
    judged = judge(storage, name, RUN_ID)
    if judged.problem is not None or judged.manifest is None:
        return judged.problem
    for rank in range(2):
        try:
            read_without_ranks(storage, judged.manifest, rank=rank)
        except CheckpointInvalid as error:
            return str(error)
    return None


def assert_noticed(storage: LocalStorage, file: str, what: str) -> None:
    said = noticed_by_reading(storage, NEWEST), verify(storage, NEWEST, RUN_ID)
    for one in said:
        assert one is not None, f"{what}: nobody notices"
        # Without its manifest a checkpoint is uncommitted; what else is there is not looked at.
        word = file.removesuffix(".json") if file == "manifest.json" else file
        assert word in one, f"{what}: {one}"


def places(file: str, size: int) -> Iterator[int]:
    """All bytes; of a shard, whose header is padded with thousands of spaces, not all of those."""
    if not file.startswith("shards/"):
        yield from range(size)
    else:
        yield from range(400)
        yield from range(400, 4096, 97)
        yield from range(4090, size)


@pytest.mark.parametrize("file", FILES)
def test_every_byte_flipped(storage: UnsyncedStorage, memory: Path, file: str) -> None:
    """One bit of any byte: noticed, and named."""
    path = memory / NEWEST.folder / file
    data = path.read_bytes()
    descriptor = os.open(path, os.O_RDWR)
    try:
        for at in places(file, len(data)):
            os.pwrite(descriptor, bytes([data[at] ^ 1 << at % 8]), at)
            assert_noticed(storage, file, f"{file}, byte {at}")
            os.pwrite(descriptor, data[at : at + 1], at)
    finally:
        os.close(descriptor)
    assert noticed_by_reading(storage, NEWEST) is None
    assert verify(storage, NEWEST, RUN_ID) is None


@pytest.mark.parametrize("file", FILES)
def test_every_length(storage: UnsyncedStorage, memory: Path, file: str) -> None:
    """Cut anywhere: noticed, and named."""
    path = memory / NEWEST.folder / file
    data = path.read_bytes()
    for length in reversed(list(places(file, len(data)))):
        os.truncate(path, length)
        assert_noticed(storage, file, f"{file} cut to {length} bytes")


def replaced(file: str, other: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copy(folder / other, folder / file)


def exchanges() -> Iterator[tuple[str, Callable[[Path], object], str]]:
    """(what, how, the file that is to be named)"""
    for file in FILES:
        yield f"{file} emptied", lambda folder, file=file: os.truncate(folder / file, 0), file
        if file != "manifest.json":  # without it nothing was committed, and it can be again
            yield f"{file} missing", lambda folder, file=file: os.unlink(folder / file), file
        for other in FILES:
            if other != file:
                yield f"{file} is {other}", replaced(file, other), file
        for step in (OLD, MIDDLE):
            yield f"{file} of {step}", replaced(file, f"../{step}/{file}"), file
    for folder_name in ("shards", "parts", "pickles"):
        yield f"no {folder_name}", lambda folder, inner=folder_name: shutil.rmtree(folder / inner), folder_name


EXCHANGES = {what: (how, named) for what, how, named in exchanges()}


def test_every_exchange(storage: UnsyncedStorage, memory: Path) -> None:
    """Missing, emptied, or replaced by any other file of the run: noticed, named, and the one before it is taken."""
    folder, aside = memory / NEWEST.folder, memory / "aside"
    for what, (how, named) in EXCHANGES.items():
        shutil.copytree(folder, memory / "whole")
        how(folder)
        assert_noticed(storage, named, what)
        if judge(storage, NEWEST).problem is None and named == FILES[4]:
            shutil.rmtree(folder)  # rank 1 alone reads it, and has noticed
        else:
            assert_is(restore(storage), MIDDLE)
            (reason,) = aside.glob("*/reason.txt")
            assert named.removesuffix(".json") in reason.read_text(), what
            shutil.rmtree(aside)
        (memory / "whole").rename(folder)
        assert verify(storage, OLD, RUN_ID) is None
    assert_is(restore(storage), NEWEST)


def test_copies_beside_it_change_nothing(storage: UnsyncedStorage, memory: Path) -> None:
    """Every file once more under another name: the checkpoint is as valid as before."""
    folder = memory / NEWEST.folder
    for file in FILES:
        for new in (f"{file}.bak", f"copy of {Path(file).name}", file.replace("rank-0000", "rank-0001")):
            if new != file:
                shutil.copy(folder / file, folder / new)
    assert verify(storage, NEWEST, RUN_ID) is None
    assert_is(restore(storage), NEWEST)


@pytest.mark.parametrize("file", ["manifest.json", *FILES[1::2], "parts", "shards"])
@pytest.mark.parametrize("kind", ["elsewhere", "inside", "dangling", "a pipe", "a device"])
def test_what_is_no_plain_file_is_not_read(storage: UnsyncedStorage, memory: Path, file: str, kind: str) -> None:
    """A symbolic link inside a checkpoint is not followed, though the same bytes lie behind it; nothing waits."""
    path = memory / NEWEST.folder / file
    target = memory / "elsewhere" if kind == "elsewhere" else path.with_name("moved")
    path.rename(target)
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"dangling": memory / "nowhere", "a device": Path("/dev/zero")}.get(kind, target))
    storage = UnsyncedStorage(memory)  # as in a new process
    assert verify(storage, NEWEST, RUN_ID) is not None
    assert_is(restore(storage), MIDDLE)


def test_checkpoints_may_lie_on_another_disk(storage: UnsyncedStorage, memory: Path) -> None:
    """A link in place of the folder of checkpoints, or of one of them, is its owner's choice, and is followed."""
    (memory / NEWEST.folder).rename(memory / "one")
    (memory / NEWEST.folder).symlink_to(memory / "one")
    (memory / "checkpoints").rename(memory / "all")
    (memory / "checkpoints").symlink_to(memory / "all")
    assert verify(storage, NEWEST, RUN_ID) is None
    assert_is(restore(storage), NEWEST)
