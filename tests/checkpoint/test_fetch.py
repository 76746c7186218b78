"""Blocks of files, from wherever they are, to where they are wanted."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresume.checkpoint import fetch as fetching
from autoresume.checkpoint.fetch import Wanted, fetch, verify_file
from autoresume.errors import CheckpointInvalid
from autoresume.format.digest import seal_blocks
from autoresume.format.names import CheckpointName
from autoresume.format.part import File
from autoresume.storage import LocalStorage
from autoresume.storage.reading import OpenFile

NAME = CheckpointName(step=1, incarnation=1, epoch=0, samples=0)
BLOCK = 1000
SIZE = 10 * BLOCK + 7


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> LocalStorage:
    made = LocalStorage(tmp_path_factory.mktemp("run"))
    for rank in range(30):
        made.write(NAME.shard(rank), content)
    return made


def record(content: bytes, rank: int = 0) -> File:
    name = NAME.shard(rank).removeprefix(NAME.folder + "/")
    return File(name, len(content), BLOCK, seal_blocks(memoryview(content), BLOCK))


def wish(file: File, ranges: list[tuple[int, int]], common: bool = False) -> tuple[Wanted, list[memoryview]]:
    wanted, memories = Wanted(file), []
    for begin, end in ranges:
        memories.append(memoryview(bytearray(end - begin)))
        wanted.want(begin, memories[-1], common)
    return wanted, memories


ranges = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: tuple(sorted(pair))))


@settings(deadline=None, max_examples=100)
@given(ranges=ranges, common=st.booleans())
def test_any_ranges(storage: LocalStorage, content: bytes, ranges: list[tuple[int, int]], common: bool) -> None:
    """Ranges in any order, overlapping or empty, of a file: each is filled with its bytes."""
    wanted, memories = wish(record(content), ranges, common)
    fetch(storage, NAME, [wanted])
    assert [bytes(memory) for memory in memories] == [content[begin:end] for begin, end in ranges]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the blocks that are read, in the order in which they were begun."""
    found: list[int] = []
    original = OpenFile.fill

    def noted(self: OpenFile, begin: int, *rest: object) -> object:
        found.append(begin // BLOCK)
        return original(self, begin, *rest)

    monkeypatch.setattr(OpenFile, "fill", noted)
    monkeypatch.setattr(fetching, "_threads", lambda _: 1)
    return found


def test_each_block_is_read_once(storage: LocalStorage, content: bytes, read: list[int]) -> None:
    """Blocks that nobody wants are not read; those that many want are read once."""
    wanted, _ = wish(record(content), [(9001, 9010), (100, 200), (300, 1001), (4000, 4001), (5999, 6000), (700, 700)])
    fetch(storage, NAME, [wanted])
    assert read == [0, 1, 4, 5, 9]


@pytest.mark.parametrize(("rank", "first"), [("0", 0), ("1", 3), ("2", 7)])
def test_ranks_of_a_node_begin_at_different_blocks(
    storage: LocalStorage,
    content: bytes,
    read: list[int],
    monkeypatch: pytest.MonkeyPatch,
    rank: str,
    first: int,
) -> None:
    """Each reads everything; what all of them want each begins in another place, and what only it wants at its front."""
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    for common, begin in ((True, first), (False, 0)):
        read.clear()
        wanted, (memory,) = wish(record(content), [(0, SIZE)], common)
        fetch(storage, NAME, [wanted])
        assert read == [*range(begin, 11), *range(begin)]
        assert bytes(memory) == content


def test_files_are_closed_when_they_were_read(storage: LocalStorage, content: bytes) -> None:
    """A checkpoint of more files than a process may open is read all the same, and no file stays open."""
    before = os.listdir("/proc/self/fd")
    most = 0
    original = OpenFile.close

    def noted(self: OpenFile) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))
        original(self)

    OpenFile.close = noted  # type: ignore[method-assign]
    try:
        fetch(storage, NAME, [wish(record(content, rank), [(0, SIZE)])[0] for rank in range(30)])
    finally:
        OpenFile.close = original  # type: ignore[method-assign]
    assert most < len(before) + 25
    assert len(os.listdir("/proc/self/fd")) == len(before)


def damaged(content: bytes, *places: int) -> bytes:
    changed = bytearray(content)
    for place in places:
        changed[place] ^= 1
    return bytes(changed)


def test_the_first_damaged_block_is_told(tmp_path: Path, content: bytes) -> None:
    """In the order of the file, whichever thread finds its own first; a check that keeps nothing says the same."""
    storage = LocalStorage(tmp_path)
    storage.write(NAME.shard(0), damaged(content, 5500, 2500))
    wanted, _ = wish(record(content), [(0, SIZE)])
    with pytest.raises(CheckpointInvalid, match="damaged between byte 2000 and 3000"):
        fetch(storage, NAME, [wanted])
    with pytest.raises(CheckpointInvalid, match="damaged between byte 2000 and 3000"):
        verify_file(storage, NAME, record(content))
    fetch(storage, NAME, [wish(record(content), [(0, 2000), (3000, 5000), (6000, SIZE)])[0]])


@pytest.mark.parametrize("what", ["shorter", "gone"])
def test_a_file_that_is_not_there(tmp_path: Path, content: bytes, what: str) -> None:
    """A file that ends too early, or has vanished since it was listed, is an invalid checkpoint."""
    storage = LocalStorage(tmp_path)
    if what == "shorter":
        storage.write(NAME.shard(0), content[:-1])
    with pytest.raises(CheckpointInvalid, match="can't be read whole"):
        fetch(storage, NAME, [wish(record(content), [(0, SIZE)])[0]])


IMAGES = {
    "whole": lambda content: content + bytes(3000),
    "damaged": lambda content: damaged(content, 3500),
    "shorter": lambda content: content[:5500],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("before", [0, 4096])
@pytest.mark.parametrize("what", [*IMAGES, "gone"])
def test_an_image_in_memory(
    storage: LocalStorage, content: bytes, what: str, before: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is right in it is used, and everything else is read from the file, which is told to nobody but debuggers.
    Another file may lie before it in the same memory."""
    image = tmp_path / "arena"
    if what in IMAGES:
        image.write_bytes(bytes(before) + IMAGES[what](content))
    file = record(content)
    wanted, (memory,) = wish(file, [(0, SIZE)])
    caplog.set_level(logging.DEBUG, "autoresume")
    fetch(storage, NAME, [wanted], {file.name: (image, before)})
    assert bytes(memory) == content
    assert [record.levelno for record in caplog.records if "image in memory" in record.message][:1] == (
        [] if what == "whole" else [logging.DEBUG]
    )


def test_a_whole_image_needs_no_file(tmp_path: Path, content: bytes) -> None:
    """With a right image nothing of the file is read: here there is none."""
    (tmp_path / "arena").write_bytes(content)
    file = record(content)
    wanted, (memory,) = wish(file, [(0, SIZE)])
    fetch(LocalStorage(tmp_path / "empty"), NAME, [wanted], {file.name: (tmp_path / "arena", 0)})
    assert bytes(memory) == content
