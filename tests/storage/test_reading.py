"""Files that are read in blocks: past the page cache, from it, and where neither goes."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoresume.storage import LocalStorage, pages, reading
from autoresume.storage.reading import OpenFile, Target

MIB = 1024 * 1024
SIZE = 9 * MIB + 4321
"""Neither a multiple of the alignment nor of what is read at once."""
shared = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture(scope="module", params=["disk", "tmpfs"])
def path(request: pytest.FixtureRequest, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if request.param == "disk":
        made = tmp_path_factory.mktemp("files") / "file"
        made.write_bytes(content)
        yield made
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            made = Path(folder) / "file"
            made.write_bytes(content)
            yield made


@pytest.fixture(params=["direct", "buffered", "as it comes"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Nothing is ever in the page cache, or all is, or the kernel is asked."""
    if request.param != "as it comes":
        monkeypatch.setattr(pages, "cached", lambda *_: request.param == "buffered")
        monkeypatch.setattr(reading, "_DIRECT_FROM", 0)
    return request.param


def filled(file: OpenFile, begin: int, end: int, wanted: list[tuple[int, int]]) -> tuple[bytes, list[Target]]:
    targets = [(first, memoryview(bytearray(last - first))) for first, last in wanted]
    return b"".join(map(bytes, file.fill(begin, end, targets))), targets


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]]]:
    """A range of a file, and what is wanted in and around it: few large pieces, or many small ones."""
    near = st.sampled_from([0, 1, 4095, 4096, 256 * 1024, 256 * 1024 + 7, 8 * MIB, 9 * MIB, SIZE - 1, SIZE])
    places = near | st.integers(0, SIZE)
    begin, end = sorted((draw(places), draw(places)))
    cuts = sorted(draw(st.lists(places, max_size=8)))
    if draw(st.booleans()):
        start = draw(st.integers(0, SIZE - 4000))
        cuts = sorted({*cuts, *range(start, start + 4000, draw(st.integers(1, 100)))})
    wanted = [pair for pair in pairwise(cuts) if pair[0] < pair[1]]
    return begin, end, wanted[draw(st.integers(0, 1)) :: draw(st.integers(1, 2))]


@shared
@given(case=ranges())
def test_any_range_with_any_targets(path: Path, content: bytes, way: str, case: tuple) -> None:
    """All bytes of the range are shown once, in order; targets hold what lies in the range, and nothing else changes."""
    begin, end, wanted = case
    with reading.open_file(path) as file:
        shown, targets = filled(file, begin, end, wanted)
    assert shown == content[begin:end]
    for (first, last), (_, memory) in zip(wanted, targets):
        a, b = max(first, begin), max(first, begin, min(last, end))
        expected = bytes(last - first) if a >= last else bytes(a - first) + content[a:b] + bytes(last - b)
        assert bytes(memory) == expected


def test_many_threads_read_one_file(path: Path, content: bytes, way: str) -> None:
    """Blocks that several threads read at the same time come out as if they had been read one by one."""
    memory = memoryview(bytearray(SIZE))
    begins = list(range(0, SIZE, 100_003))

    def read(begin: int) -> bytes:
        return b"".join(map(bytes, file.fill(begin, min(begin + 100_003, SIZE), [(0, memory)])))

    with reading.open_file(path) as file, ThreadPoolExecutor(8) as pool:
        assert b"".join(pool.map(read, begins)) == content
    assert bytes(memory) == content


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097])
def test_small_files(tmp_path: Path, way: str, size: int) -> None:
    """Files around the alignment, and empty ones, are read whole, and not beyond their end."""
    (tmp_path / "small").write_bytes(b"x" * size)
    with reading.open_file(tmp_path / "small") as file:
        shown, targets = filled(file, 0, size, [(0, size)] if size else [])
        assert shown == b"".join(bytes(memory) for _, memory in targets) == b"x" * size
        with pytest.raises(EOFError, match=f"small ends at byte {size}, 3 bytes too early"):
            filled(file, 0, size + 3, [])


def test_a_file_that_was_cut_short(path: Path, way: str) -> None:
    """A block that lies beyond the end of the file, or over it, is an EOFError."""
    with reading.open_file(path) as file:
        for begin, end in ((SIZE - 5000, SIZE + 1), (SIZE + 10 * MIB, SIZE + 12 * MIB)):
            with pytest.raises(EOFError):
                filled(file, begin, end, [])


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whether each read went past the page cache."""
    found: list[str] = []
    preadv = os.preadv

    def noted(descriptor: int, buffers: list, offset: int) -> int:
        import fcntl

        found.append("direct" if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT else "buffered")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", noted)
    return found


def on_disk(tmp_path: Path, content: bytes) -> Path:
    """A file that no page of is in the cache, where the file system can do that at all."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        except OSError:
            pytest.skip("this file system knows no O_DIRECT")
        if pages.cached(file.fileno(), 0, len(content)):
            pytest.skip("this file system keeps everything in the page cache")
    return path


def test_a_cold_file_leaves_the_page_cache_alone(tmp_path: Path, content: bytes, requests: list[str]) -> None:
    """What is not in the page cache is read past it, and is not in it afterwards; what is, is taken from there.

    Reading for others on this node goes through it.
    """
    path = on_disk(tmp_path, content)
    with reading.open_file(path) as file:
        assert filled(file, 0, SIZE, [])[0] == content
        assert set(requests) == {"direct"}
        assert not pages.cached(file._descriptor, 0, SIZE)
        requests.clear()
        assert b"".join(map(bytes, file.fill(0, SIZE, (), True))) == content
        assert set(requests) == {"buffered"}
        assert pages.cached(file._descriptor, 0, SIZE)
        requests.clear()
        assert filled(file, 0, SIZE, [])[0] == content
        assert set(requests) == {"buffered"}


@pytest.mark.parametrize("number", sorted(reading.NO_DIRECT))
@pytest.mark.parametrize("after", [0, 1])
def test_a_system_that_refuses_to_read_directly(
    path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, number: int, after: int
) -> None:
    """Refused at the first request or at a later one: the rest is read through the page cache, and nothing is missing."""
    preadv, done = os.preadv, []

    def refusing(descriptor: int, buffers: list, offset: int) -> int:
        if descriptor == file._direct:
            done.append(offset)
            if len(done) > after:
                raise OSError(number, os.strerror(number))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(pages, "cached", lambda *_: False)
    monkeypatch.setattr(os, "preadv", refusing)
    with reading.open_file(path) as file:
        shown, targets = filled(file, 0, SIZE, [(5, SIZE - 5)])
        refused = file._direct is None or len(done) > after
    assert (shown, bytes(targets[0][1])) == (content, content[5:-5])
    assert refused


def test_a_file_that_can_not_be_opened_directly(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where O_DIRECT is refused when the file is opened, it is read through the page cache."""
    opened = os.open

    def refusing(name: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return opened(name, flags)

    monkeypatch.setattr(pages, "cached", lambda *_: False)
    monkeypatch.setattr(os, "open", refusing)
    with reading.open_file(path) as file:
        assert filled(file, 0, SIZE, [])[0] == content


@pytest.mark.parametrize("most", [1 * MIB, 4096, 1000])
def test_short_reads(path: Path, content: bytes, way: str, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A kernel that gives less than was asked for, at any border, is asked again for the rest."""
    preadv = os.preadv

    def stingy(descriptor: int, buffers: list, offset: int) -> int:
        return preadv(descriptor, [buffers[0][:most]], offset)

    monkeypatch.setattr(os, "preadv", stingy)
    with reading.open_file(path) as file:
        shown, targets = filled(file, 3, 2 * MIB, [(3, 99), (100, 10_000), (MIB, 2 * MIB - 1)])
    assert shown == content[3 : 2 * MIB]
    assert [bytes(memory) for _, memory in targets] == [content[3:99], content[100:10_000], content[MIB : 2 * MIB - 1]]


def test_a_disk_that_fails(path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An I/O error is raised as such: nothing is taken for read."""

    def failing(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "preadv", failing)
    with reading.open_file(path) as file, pytest.raises(OSError, match="broken"):
        filled(file, 0, SIZE, [])


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("elsewhere")])
def test_only_plain_files_are_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """A pipe, a folder, or a link in a checkpoint's place is an OSError, and nobody waits for it."""
    storage = LocalStorage(tmp_path)
    (tmp_path / "checkpoints/E0_U1_S0-0001/shards").mkdir(parents=True)
    make(tmp_path / "checkpoints/E0_U1_S0-0001/shards/rank-00000.safetensors")
    with pytest.raises(OSError):
        storage.reader("checkpoints/E0_U1_S0-0001/shards/rank-00000.safetensors")
