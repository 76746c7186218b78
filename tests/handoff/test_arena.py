"""Arenas: all their pages or MemoryError, and nothing left behind."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoresume.handoff.arena import Arena


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_what_one_process_writes_another_one_reads(tmp_path: Path) -> None:
    """A named arena is shared memory: an opened one shows what its maker copies into it, also later."""
    made = Arena(10_000, tmp_path / "arena")
    opened = Arena.open(tmp_path / "arena")
    for text in (b"first", b"later"):
        made.view(5)[:] = text
        assert bytes(opened.view(5)) == text
    assert len(opened.view(10_000)) == 10_000
    with pytest.raises(TypeError):
        opened.view(1)[0] = 1  # for reading only
    made.close(unlink=True)
    opened.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("size", "pages"), [(0, 1), (1, 1), (mmap.PAGESIZE, 1), (mmap.PAGESIZE + 1, 2)])
def test_an_arena_is_whole_pages(tmp_path: Path, size: int, pages: int) -> None:
    """The size is rounded up to pages, also that of an empty state."""
    for path in (None, tmp_path / "arena"):
        arena = Arena(size, path)
        assert arena.size == pages * mmap.PAGESIZE
        arena.close(unlink=True)


@pytest.mark.parametrize("named", [True, False])
def test_copying_into_a_new_arena_faults_nothing_in(tmp_path: Path, named: bool) -> None:
    """The first copy into an arena is as quick as any other: its pages are there and mapped."""
    size = 64 * mmap.PAGESIZE
    folder = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    path = folder / f"autoresume-test-arena-{os.getpid()}" if named else None
    arena = Arena(size, path)
    try:
        source = b"\1" * size
        view = arena.view(size)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        view[:] = source
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
        assert faults < 32, f"{faults} page faults for 64 pages"
        view.release()
    finally:
        arena.close(unlink=True)


def test_an_arena_that_is_there_is_not_taken_over(tmp_path: Path) -> None:
    """Two owners of one file would overwrite each other: making it again is an error, and changes nothing."""
    Arena(100, tmp_path / "arena").view(4)[:] = b"mine"
    with pytest.raises(FileExistsError):
        Arena(100, tmp_path / "arena")
    assert bytes(Arena.open(tmp_path / "arena").view(4)) == b"mine"


def test_closing_spares_what_is_in_use(tmp_path: Path) -> None:
    """A view that somebody still holds stays readable when its arena is closed and unlinked."""
    arena = Arena(100, tmp_path / "arena")
    view = arena.view(4)
    view[:] = b"held"
    arena.close(unlink=True)
    assert bytes(view) == b"held"
    assert os.listdir(tmp_path) == []


def test_no_room_is_a_memory_error_and_leaves_nothing(tiny: Path) -> None:
    """Where the pages aren't to be had, that is said when the arena is made, and not by SIGBUS in a later copy."""
    with pytest.raises(MemoryError, match=r"has no room for 2\.0 MB"):
        Arena(2_000_000, tiny / "arena")
    assert os.listdir(tiny) == []
    assert os.statvfs(tiny).f_bfree == os.statvfs(tiny).f_blocks


def test_the_last_pages_are_reserved_too(tiny: Path) -> None:
    """An arena that was made keeps its pages, whatever fills the rest of the memory; what is given back is free."""
    arena = Arena(700_000, tiny / "arena")
    with pytest.raises(MemoryError):
        Arena(700_000, tiny / "second")
    with open(tiny / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4096)
    assert os.statvfs(tiny).f_bfree == 0
    arena.view(arena.size)[:] = b"y" * arena.size
    (tiny / "filler").unlink()
    arena.close(unlink=True)
    Arena(700_000, tiny / "second").close(unlink=True)


def test_no_room_in_ones_own_memory_is_a_memory_error() -> None:
    """An arena without a name that can't be had is a MemoryError, too, which the saver knows how to answer."""
    with pytest.raises(MemoryError):
        Arena(1 << 46)


def test_a_dead_owners_arena_is_readable(tmp_path: Path) -> None:
    """What a process had copied before SIGKILL is in the arena afterwards: that is what it is for."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom autoresume.handoff.arena import Arena\n"
        "arena = Arena(100, Path(sys.argv[1]))\narena.view(6)[:] = b'sealed'\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "arena"]).returncode == -9
    assert bytes(Arena.open(tmp_path / "arena").view(6)) == b"sealed"
