"""LocalStorage on a real file system: bytes, names, and what survives."""

from __future__ import annotations

import errno
import mmap
import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresume.format import names
from autoresume.storage import LocalStorage
from autoresume.storage import direct as direct_writes
from tests.storage.forgetful import STRICT, VARIANTS, ForgetfulStorage, UnsyncedStorage

PAGE = 4096
BLOCK = 4 * PAGE
MIB = 1024 * 1024


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return UnsyncedStorage(tmp_path)


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which every page differs from every other."""
    unit = b"".join((number + seed).to_bytes(8, "little") for number in range(-(-size // 8)))
    return unit[:size]


def as_buffer(data: bytes, kind: str) -> bytes | bytearray | memoryview:
    """`data` in memory of the given kind; the mapped kinds lie at a multiple of the page size, or `shift` beyond it."""
    if kind == "bytes":
        return data
    if kind == "bytearray":
        return bytearray(data)
    shift = 0 if kind == "aligned" else 1
    arena = mmap.mmap(-1, len(data) + 2 * PAGE)
    view = memoryview(arena)[shift : shift + len(data)]
    view[:] = data
    return view.toreadonly() if kind == "read-only" else view


KINDS = ["bytes", "bytearray", "aligned", "shifted by one byte", "read-only"]


# -- writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 8 * MIB, 8 * MIB + PAGE + 1], ids=str)
@pytest.mark.parametrize("kind", ["bytes", "aligned"])
def test_large_files(storage: LocalStorage, size: int, kind: str) -> None:
    """With the real limits: what is written is read back, from any memory."""
    data = pattern(size)
    storage.write("a/file", as_buffer(data, kind))
    assert storage.size("a/file") == size
    assert storage.read("a/file") == data
    assert list(files_below(storage.root)) == ["a/file"]


@contextmanager
def small_limits(direct_from: int) -> Iterator[None]:
    """Blocks of 4 pages, so that all borders can be tried; direct writing from `direct_from` bytes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_writes, "BLOCK", BLOCK)
        patch.setattr(direct_writes, "_DIRECT_FROM", direct_from)
        yield


BORDERS = [0, PAGE, 2 * PAGE, BLOCK, BLOCK + PAGE, 2 * BLOCK, 3 * BLOCK - PAGE]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
def test_sizes_around_pages_and_blocks(storage: LocalStorage, kind: str, direct: bool) -> None:
    """Direct and buffered writing give the same bytes, one byte below, at and above every border."""
    with small_limits(1 if direct else sys.maxsize):
        for size in sorted({max(0, border + by) for border in BORDERS for by in (-1, 0, 1, 511, 512)}):
            storage.write("file", as_buffer(pattern(size, seed=size), kind))
            assert storage.read("file") == pattern(size, seed=size), size
    assert os.listdir(storage.root) == ["file"]


@settings(max_examples=25)
@given(size=st.integers(1, 4 * BLOCK), kind=st.sampled_from(KINDS), seed=st.integers(0, 1000))
def test_short_writes(tmp_path_factory: pytest.TempPathFactory, size: int, kind: str, seed: int) -> None:
    """The kernel may write less than it was asked to, at any time; the file is whole nevertheless."""
    storage = UnsyncedStorage(tmp_path_factory.mktemp("short"))
    pwrite = os.pwrite

    def short(descriptor: int, block: Any, offset: int) -> int:
        most = random.Random(f"{seed} {offset} {len(block)}").randint(1, len(block))  # several threads write
        if is_direct(descriptor):
            most = most // 512 * 512 or len(block)
        return pwrite(descriptor, block[:most], offset)

    with small_limits(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", short)
        storage.write("file", as_buffer(pattern(size), kind))
    assert storage.read("file") == pattern(size)


def is_direct(descriptor: int) -> bool:
    with open(f"/proc/self/fdinfo/{descriptor}") as info:
        flags = next(line for line in info if line.startswith("flags:"))
    return bool(int(flags.split()[1], 8) & os.O_DIRECT)


@pytest.mark.parametrize("refused_by", ["open", "pwrite"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_direct_writing(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, refused_by: str, code: int
) -> None:
    """Where O_DIRECT is refused, at opening or at the first write, the file is written buffered, and whole."""
    real_open, real_pwrite = os.open, os.pwrite
    refusals = []

    def refusing_open(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT and refused_by == "open":
            refusals.append(path)
            raise OSError(code, "no direct writing here")
        return real_open(path, flags, *rest)

    def refusing_pwrite(descriptor: int, block: Any, offset: int) -> int:
        if is_direct(descriptor) and refused_by == "pwrite":
            refusals.append(descriptor)
            raise OSError(code, "no direct writing here")
        return real_pwrite(descriptor, block, offset)

    monkeypatch.setattr(os, "open", refusing_open)
    monkeypatch.setattr(os, "pwrite", refusing_pwrite)
    with small_limits(1):
        for kind in KINDS:
            data = pattern(2 * BLOCK + 77)
            storage.write("file", as_buffer(data, kind))
            assert storage.read("file") == data
    assert len(refusals) == len(KINDS)


def test_writing_replaces(storage: LocalStorage) -> None:
    """A name holds what was written last, also when that is shorter."""
    storage.write("a", b"long content")
    storage.write("a", b"short")
    assert storage.read("a") == b"short"
    assert os.listdir(storage.root) == ["a"]


def test_a_reader_sees_the_old_or_the_new(storage: LocalStorage) -> None:
    """While a file is replaced again and again, readers see one of its contents whole, never a mixture or nothing."""
    contents = {bytes([number]) * (1000 + number) for number in range(20)}
    storage.write("file", min(contents))
    done = threading.Event()
    seen = set()

    def look() -> None:
        while not done.is_set():
            seen.add(storage.read("file"))

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(look) for _ in range(2)]
        for _ in range(5):
            for content in sorted(contents):
                storage.write("file", content)
        done.set()
        for reader in readers:
            reader.result()
    assert seen <= contents


def test_many_writers_of_one_new_folder(storage: LocalStorage) -> None:
    """Ranks that write into a folder that none has made yet do not disturb each other."""
    barrier = threading.Barrier(8)

    def one(rank: int) -> None:
        barrier.wait()
        storage.write(f"checkpoints/new/shards/{rank}", b"%d" % rank)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert storage.list("checkpoints/new/shards") == [str(rank) for rank in range(8)]


# -- failing writes -------------------------------------------------------------------------------------


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """Files may not grow beyond `size`, as with a quota: the kernel itself refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("direct_from", [1, sys.maxsize], ids=["direct", "buffered"])
@pytest.mark.parametrize("verb", ["write", "create"])
def test_a_write_without_room_leaves_nothing(storage: LocalStorage, direct_from: int, verb: str) -> None:
    """When the space ends in the middle: OSError, the old content stays, and no temporary file is left."""
    storage.write("old", b"old")
    with small_limits(direct_from), no_room_beyond(BLOCK), pytest.raises(OSError, match="File too large"):
        getattr(storage, verb)("old" if verb == "write" else "new", pattern(3 * BLOCK))
    assert files_below(storage.root) == {"old": b"old"}


def test_a_write_over_a_folder_leaves_nothing(storage: LocalStorage) -> None:
    """When the name is taken by a folder: OSError, the folder stays as it is, and no temporary file is left."""
    storage.write("taken/inside", b"x")
    with pytest.raises(OSError, match="directory"):
        storage.write("taken", b"y")
    assert files_below(storage.root) == {"taken/inside": b"x"}


def test_a_write_below_a_file_is_refused(storage: LocalStorage) -> None:
    """When a part of the way is a file: OSError, and nothing is changed."""
    storage.write("file", b"x")
    with pytest.raises(OSError):
        storage.write("file/below", b"y")
    assert files_below(storage.root) == {"file": b"x"}


# -- creating -------------------------------------------------------------------------------------------


def test_creating_does_not_replace(storage: LocalStorage) -> None:
    """The second `create` of a name gets False, and changes nothing."""
    assert storage.create("a/claim", b"first")
    assert not storage.create("a/claim", b"second")
    assert files_below(storage.root) == {"a/claim": b"first"}


def no_links(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.EPERM, "no hard links here")


@pytest.mark.parametrize("links", [True, False], ids=["by link", "without links"])
def test_of_many_threads_one_creates(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """However many claim a name at once, exactly one is told that it has it, and the content is its own."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    barrier = threading.Barrier(8)

    def claim(who: int) -> list[bool]:
        won = []
        for number in range(12):
            barrier.wait()
            won.append(storage.create(f"claims/{number}", b"%d" % who))
        return won

    with ThreadPoolExecutor(8) as pool:
        by_thread = list(pool.map(claim, range(8)))
    for number in range(12):
        winners = [who for who, won in enumerate(by_thread) if won[number]]
        assert len(winners) == 1
        assert storage.read(f"claims/{number}") == b"%d" % winners[0]
    assert len(files_below(storage.root)) == 12


def test_of_many_processes_one_creates(tmp_path: Path) -> None:
    """The same between processes, which share nothing but the file system."""
    code = (
        "import sys; from autoresume.storage import LocalStorage\n"
        "storage = LocalStorage(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()\n"
        "print(*[n for n in range(40) if storage.create(f'claims/{n}', sys.argv[2].encode())])\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(who)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    won = {}
    for who, process in enumerate(processes):
        out, _ = process.communicate()
        assert process.returncode == 0
        for word in out.split():
            assert won.setdefault(int(word), who) == who
    assert {f"claims/{number}": b"%d" % who for number, who in won.items()} == files_below(tmp_path)
    assert len(won) == 40


# -- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "..", "../outside", "a/../../outside", "/etc/passwd", "a//b", ".", "a/.", "a\0"])
@pytest.mark.parametrize(
    "verb",
    [
        lambda storage, name: storage.list(name),
        lambda storage, name: storage.size(name),
        lambda storage, name: storage.read(name),
        lambda storage, name: storage.read(name, into=memoryview(bytearray(1))),
        lambda storage, name: storage.write(name, b"x"),
        lambda storage, name: storage.create(name, b"x"),
        lambda storage, name: storage.sync(name),
        lambda storage, name: storage.move(name, "new"),
        lambda storage, name: storage.move("inside", name),
        lambda storage, name: storage.link(name, "new"),
        lambda storage, name: storage.link("inside", name),
        lambda storage, name: storage.remove(name),
    ],
    ids=[
        *("list", "size", "read", "read into", "write", "create", "sync"),
        *("move from", "move to", "link from", "link to", "remove"),
    ],
)
def test_names_that_leave_the_root_are_refused(tmp_path: Path, verb: Any, name: str) -> None:
    """No verb reads, writes or deletes anything outside of the root; the name is refused with ValueError."""
    (tmp_path / "outside").write_bytes(b"x")
    storage = UnsyncedStorage(tmp_path / "root")
    storage.write("inside", b"x")
    with pytest.raises(ValueError, match="not a name inside"):
        verb(storage, name)
    assert files_below(tmp_path) == {"outside": b"x", "root/inside": b"x"}


# -- reading and listing --------------------------------------------------------------------------------


@given(st.binary(max_size=50), st.integers(0, 60), st.integers(0, 60))
def test_reading_a_piece(tmp_path_factory: pytest.TempPathFactory, content: bytes, offset: int, size: int) -> None:
    """Exactly the bytes that were asked for, or EOFError where the file ends too early."""
    storage = UnsyncedStorage(tmp_path_factory.getbasetemp() / "pieces")
    storage.write("file", content)
    into = bytearray(size)
    if size and offset + size > len(content):
        with pytest.raises(EOFError, match="file ends at byte"):
            storage.read("file", into=memoryview(into), offset=offset)
    else:
        assert storage.read("file", into=memoryview(into), offset=offset) == b""
        assert bytes(into) == content[offset : offset + size]


def test_what_is_not_there(storage: LocalStorage) -> None:
    """Missing files have no size, missing folders no content, and reading them is FileNotFoundError."""
    storage.write("file", b"x")
    assert storage.size("none") is None
    assert storage.size("file/below") is None
    assert storage.list("none") == []
    assert storage.list("file") == []
    storage.sync("none")
    storage.remove("none")
    storage.remove("none/below")
    with pytest.raises(FileNotFoundError):
        storage.read("none")
    with pytest.raises(FileNotFoundError):
        storage.read("none", into=memoryview(bytearray(1)))
    assert files_below(storage.root) == {"file": b"x"}


def test_a_folder_is_listed_in_order(storage: LocalStorage) -> None:
    """Names, sorted, of files and folders, and nothing that lies deeper."""
    for name in ("folder/b", "folder/a", "folder/c/d", "other"):
        storage.write(name, b"")
    assert storage.list("folder") == ["a", "b", "c"]


# -- moving and removing --------------------------------------------------------------------------------


def test_moving_takes_everything_along(storage: LocalStorage) -> None:
    """A folder is renamed with all it holds, into a folder that is made for it."""
    storage.write("checkpoints/one/parts/a", b"a")
    storage.write("checkpoints/one/b", b"b")
    storage.move("checkpoints/one", "aside/one")
    assert files_below(storage.root) == {"aside/one/parts/a": b"a", "aside/one/b": b"b"}


def test_moving_does_not_replace(storage: LocalStorage) -> None:
    """A new name that is taken, by a folder, an empty one or a file, is FileExistsError; nothing is moved."""
    storage.write("one/a", b"1")
    storage.write("file", b"2")
    (storage.root / "empty").mkdir()
    for taken in ("file", "empty"):
        with pytest.raises(FileExistsError):
            storage.move("one", taken)
    with pytest.raises(FileNotFoundError):
        storage.move("none", "new")
    assert files_below(storage.root) == {"one/a": b"1", "file": b"2"}


def test_removing(storage: LocalStorage) -> None:
    """Files and whole folders go, nothing else, and no temporary name is left behind."""
    grave = names.temporary("half", "1234")
    for name in ("a/b/c", "a/d", "ab", "file", f"{grave}/x"):
        storage.write(name, b"x")
    for name in ("a", "file", grave):
        storage.remove(name)
    assert files_below(storage.root) == {"ab": b"x"}
    assert os.listdir(storage.root) == ["ab"]


def test_removing_does_not_follow_links(storage: LocalStorage, tmp_path: Path) -> None:
    """A symbolic link is removed itself; what it points to stays."""
    storage.write("precious/file", b"x")
    os.symlink(tmp_path / "precious", tmp_path / "link")
    storage.remove("link")
    storage.write("folder/file", b"y")
    os.symlink(tmp_path / "precious", tmp_path / "folder" / "link")
    storage.remove("folder")
    assert files_below(storage.root) == {"precious/file": b"x"}


def test_many_remove_the_same(storage: LocalStorage) -> None:
    """Several processes that prune the same checkpoint at once do not fail, and it is gone."""
    for turn in range(5):
        for number in range(20):
            storage.write(f"folder/{number % 3}/{number}", b"x")
        barrier = threading.Barrier(6)

        def remove(_: int, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            storage.remove("folder")

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(remove, range(6)))
        assert os.listdir(storage.root) == [], turn


# -- linking --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False], ids=["by link", "without links"])
def test_linking(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """A second name of a file: it keeps its content when the first is published anew or removed, and may replace."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    storage.write("files/best", b"first")
    storage.link("files/best", "checkpoint/deep/best")
    storage.write("files/best", b"second")
    storage.link("files/best", "other")
    storage.remove("files/best")
    assert files_below(storage.root) == {"checkpoint/deep/best": b"first", "other": b"second"}
    storage.link("checkpoint/deep/best", "other")
    storage.link("checkpoint/deep/best", "other")
    assert files_below(storage.root) == {"checkpoint/deep/best": b"first", "other": b"first"}


@pytest.mark.parametrize("links", [True, False], ids=["by link", "without links"])
def test_a_link_that_fails_leaves_nothing(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """No source, or a target that is a folder: OSError, and no temporary file is left."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    storage.write("file", b"x")
    storage.write("folder/inside", b"y")
    with pytest.raises(FileNotFoundError):
        storage.link("none", "new")
    with pytest.raises(OSError, match="directory"):
        storage.link("file", "folder")
    assert files_below(storage.root) == {"file": b"x", "folder/inside": b"y"}


def test_free_bytes(tmp_path: Path) -> None:
    """What is free is known before the root exists."""
    free = LocalStorage(tmp_path / "not" / "yet").free_bytes()
    assert free is not None
    assert free > 0
    assert not (tmp_path / "not").exists()


# -- durability -----------------------------------------------------------------------------------------

paths = st.sampled_from(["a", "b", "folder/a", "folder/b", "folder/deep/a", "other/a"])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), paths, st.binary(max_size=6)),
        st.tuples(st.just("create"), paths, st.binary(max_size=6)),
        st.tuples(st.just("append"), paths, st.binary(min_size=1, max_size=6)),
        st.tuples(st.just("link"), paths, paths),
        st.tuples(st.just("move"), st.sampled_from(["folder", "other"]), st.sampled_from(["new/x", "moved", "other"])),
        st.tuples(st.just("remove"), st.sampled_from(["a", "folder", "folder/a", "moved", "other"]), st.none()),
    ),
    max_size=8,
)


def perform(storage: LocalStorage, operation: tuple[str, str, Any], model: dict[str, bytes]) -> set[str]:
    """Do it on the storage and on the model; returns the names that are uncertain from now on."""
    verb, name, detail = operation
    below = {one for one in model if one == name or one.startswith(f"{name}/")}
    if verb == "write":
        storage.write(name, detail)
        model[name] = detail
    elif verb == "create":
        assert storage.create(name, detail) == (name not in model)
        model.setdefault(name, detail)
    elif verb == "append" and name in model:
        inode = os.stat(storage.root / name).st_ino
        with open(storage.root / name, "ab") as file:
            file.write(detail)
        storage.sync(name)
        for one in model:  # of one file, all names
            if os.stat(storage.root / one).st_ino == inode:
                model[one] += detail
    elif verb == "link" and name in model:
        storage.link(name, detail)
        model[detail] = model[name]
    elif verb == "move" and below and not (storage.root / detail).exists():
        storage.move(name, detail)
        for one in below:
            model[detail + one.removeprefix(name)] = model.pop(one)
    elif verb == "remove":
        storage.remove(name)
        for one in below:
            del model[one]
        return below
    return set()


@settings(max_examples=60)
@given(operations)
def test_whatever_a_verb_returned_from_survives(
    tmp_path_factory: pytest.TempPathFactory, done: list[tuple[str, str, Any]]
) -> None:
    """After any sequence of verbs and a power failure, each name holds what was last published under it.

    Only deleting may be undone: a name that was removed is gone, or is still there.
    """
    folder = tmp_path_factory.mktemp("durable")
    model: dict[str, bytes] = {}
    removed: set[str] = set()
    with ForgetfulStorage(folder / "disk") as storage:
        for operation in done:
            removed |= perform(storage, operation, model)
        disk = storage.freeze()
    for number, variant in enumerate(VARIANTS):
        found = files_below(disk.rebuild(folder / str(number), variant))
        found = {name: content for name, content in found.items() if not names.is_temporary(name.split("/")[0])}
        assert {name: found.get(name) for name in model} == model, str(variant)
        if variant.names == "kept":
            assert set(found) == set(model)


class PowerFailure(BaseException):
    pass


def test_each_write_is_old_or_new_at_every_moment(tmp_path: Path) -> None:
    """Losing power at any sync of a `write`: the name holds the old content or the new one, never a mixture."""
    for moment in range(1, 6):
        with ForgetfulStorage(tmp_path / f"disk-{moment}") as storage:
            storage.write("folder/file", b"old content")
            reached = [0]

            def fail(_: str, reached: list[int] = reached, moment: int = moment) -> None:
                reached[0] += 1
                if reached[0] == moment:
                    raise PowerFailure

            storage.moment = fail
            try:
                storage.write("folder/file", b"new")
                finished = True
            except PowerFailure:
                finished = False
            disk = storage.freeze()
        for variant in VARIANTS:
            root = disk.rebuild(tmp_path / f"{moment}-{variant}", variant)
            found = (root / "folder" / "file").read_bytes()
            assert found == b"new" if finished else found in (b"old content", b"new")
    assert finished


def test_a_folder_made_by_a_rank_that_died_is_durable_too(tmp_path: Path) -> None:
    """A rank that finds a folder there can't know that its maker lived to sync it: what it writes into is durable.

    Rank 0 makes `checkpoints/x` and is killed before it syncs `checkpoints`; rank 1 writes into it, is
    told that its file is durable, and then the power fails.
    """
    with ForgetfulStorage(tmp_path / "disk") as storage:
        storage.write("checkpoints/w/file", b"older")

        def killed(_: str) -> None:
            if (storage.root / "checkpoints" / "x").exists():
                raise PowerFailure

        storage.moment = killed
        with pytest.raises(PowerFailure):
            storage.write("checkpoints/x/rank-0", b"0")
        storage.moment = None
        assert os.listdir(storage.root / "checkpoints" / "x") == []

        storage.write("checkpoints/x/rank-1", b"1")
        root = storage.freeze().rebuild(tmp_path / "after", STRICT)
    assert files_below(root) == {"checkpoints/w/file": b"older", "checkpoints/x/rank-1": b"1"}


def test_nothing_is_added_to_a_folder_that_is_gone(tmp_path: Path) -> None:
    """`add` publishes into a folder that is there; where that was removed it fails, and does not make it again."""
    storage = LocalStorage(tmp_path)
    storage.write("a/one", b"1")
    storage.add("a/two", b"2")
    assert storage.read("a/two") == b"2"
    storage.remove("a")
    with pytest.raises(FileNotFoundError):
        storage.add("a/two", b"3")
    assert storage.list("a") == []
    assert not (tmp_path / "a").exists()
