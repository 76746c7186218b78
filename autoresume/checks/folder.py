"""What the run directory's file system can do, tried with the code that saves checkpoints.

Law: everything is tried in a folder of its own, which is gone afterwards; 64 MiB are written at most, and less
where that would take long.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autoresume.base.findings import Finding, Verdict
from autoresume.base.findings import format_bytes as in_words
from autoresume.format.names import temporary
from autoresume.storage.local import LocalStorage

_MOST_BYTES = 64 << 20
_FIRST_BYTES = 8 << 20
_MOST_SECONDS = 5.0
"""What writing the rest may take, by the speed of the first bytes."""
_DIRECT_BYTES = 1 << 16
_SMALL = 4096
_TRIES = 5
_SLOW_SECONDS = 1.0
_RENAMES = 20
_FEW_FILES = 10_000


@dataclass(frozen=True)
class Writing:
    """What saving costs here; None where it could not be measured."""

    bytes_per_second: float | None
    small_seconds: float | None
    """Of publishing a small file durably."""


def nearest(folder: Path) -> Path:
    """The folder, or the one above it that is there."""
    folder = folder.absolute()
    while not os.path.isdir(folder) and folder != folder.parent:  # False, too, where it is closed to us
        folder = folder.parent
    return folder


@contextlib.contextmanager
def trial(folder: Path) -> Iterator[LocalStorage]:
    """A folder to try things in, which no run takes for its own. Raises OSError where none can be made."""
    place = Path(temporary(str(nearest(folder) / "doctor"), secrets.token_hex(4)))
    place.mkdir()
    try:
        yield LocalStorage(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def look(folder: Path) -> tuple[list[Finding], Writing]:
    """Try all that a save does."""
    try:
        with trial(folder) as storage:
            durable, small_seconds = _durable(storage)
            found = [durable, _attempt("rename", _rename, storage), _attempt("hard links", _link, storage)]
            found.append(_attempt("direct writes", _direct, storage))
            speed = _speed(storage)
            return [*found, _speed_finding(speed)], Writing(speed, small_seconds)
    except OSError as error:
        closed = Finding(
            "run directory",
            Verdict.FAIL,
            f"nothing can be written in {nearest(folder)}: {error.strerror}",
            "no checkpoint can be saved there",
            "Give a folder that is yours: --run-dir here, run_dir or AUTORESUME_RUN_DIR in the run.",
        )
        return [closed], Writing(None, None)


def _attempt(name: str, what: Callable[[LocalStorage], Finding], storage: LocalStorage) -> Finding:
    try:
        return what(storage)
    except OSError as error:
        return Finding(name, Verdict.FAIL, f"it failed: {error}", "saving needs it", "Choose another file system.")


def _durable(storage: LocalStorage) -> tuple[Finding, float | None]:
    name, took = "durable writes", []
    try:
        for number in range(_TRIES):
            began = time.monotonic()
            storage.write(f"small-{number}", os.urandom(_SMALL))
            took.append(time.monotonic() - began)
    except OSError as error:
        failed = "fsync or rename fails here, so that no checkpoint can be relied on"
        return Finding(name, Verdict.FAIL, f"{error}", failed, "Choose another file system."), None
    seconds = statistics.median(took)
    found = f"write, fsync and rename of a small file take {1000 * seconds:.1f} ms"
    if seconds > _SLOW_SECONDS:
        slow = "a commit takes several of them, whatever the size of the state"
        return Finding(name, Verdict.WARN, found, slow, "Choose another file system for the run directory."), seconds
    return Finding(name, Verdict.PASS, found, "what was saved survives a crash of this machine"), seconds


def _rename(storage: LocalStorage) -> Finding:
    """Publish a file again and again while another thread reads it: whole, and never missing."""
    name, contents = "renamed", (b"a" * _SMALL, b"b" * _SMALL)
    path = storage.path(name)
    storage.write(name, contents[0])
    torn: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set() and not torn:
            try:
                content = path.read_bytes()
            except OSError as error:
                torn.append(f"the file was missing for a moment ({error.strerror})")
            else:
                if content not in contents:
                    torn.append(f"{len(content)} bytes of a mixture were seen instead of {_SMALL}")

    reader = threading.Thread(target=read, name="autoresume-doctor", daemon=True)
    reader.start()
    end = time.monotonic() + _MOST_SECONDS
    for number in range(1, _RENAMES):
        storage.write(name, contents[number % 2])
        if path.read_bytes() != contents[number % 2]:
            torn.append("the old content was seen after the rename")
        if torn or time.monotonic() > end:
            break
    done.set()
    reader.join()
    if torn:
        broken = "a manifest may be read torn, and a valid checkpoint be taken for a damaged one"
        return Finding("rename", Verdict.FAIL, f"not atomic: {torn[0]}", broken, "Choose another file system.")
    return Finding("rename", Verdict.PASS, "atomic over an existing file", "a checkpoint is there as a whole, or not")


def _link(storage: LocalStorage) -> Finding:
    name = "hard links"
    source, target = storage.path("source"), storage.path("target")
    source.write_bytes(b"a")
    try:
        os.link(source, target)
    except OSError as error:
        without = "files are copied instead, and a claim can be left empty by a crash at the wrong moment"
        return Finding(
            name, Verdict.WARN, f"none ({error.strerror})", without, "Choose another file system if you can."
        )
    try:
        os.link(source, target)
    except FileExistsError:
        return Finding(name, Verdict.PASS, "they work", "of two jobs that claim one run, exactly one gets it")
    twice = "two jobs could both take this run for theirs"
    return Finding(name, Verdict.FAIL, "one name can be made twice", twice, "Choose another file system.")


def _direct(storage: LocalStorage) -> Finding:
    name, path = "direct writes", storage.path("direct")
    buffered = "saves are buffered: slower, and they push training's files out of the page cache"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return Finding(name, Verdict.PASS, f"O_DIRECT is refused ({error.strerror})", buffered)
    block = mmap.mmap(-1, _DIRECT_BYTES)
    try:
        os.pwrite(descriptor, block, 0)
    except OSError as error:
        return Finding(name, Verdict.PASS, f"O_DIRECT is refused ({error.strerror})", buffered)
    finally:
        os.close(descriptor)
        block.close()
    return Finding(name, Verdict.PASS, "O_DIRECT works", "saves go past the page cache")


def _speed(storage: LocalStorage) -> float | None:
    """Bytes a second of the write that saves a shard; None where there is no room to try."""
    free = storage.free_bytes() or 0
    first = min(_FIRST_BYTES, free // 20)
    if first < _DIRECT_BYTES:
        return None
    try:
        speed = _write(storage, first)
        rest = min(_MOST_BYTES - first, free // 20, int(speed * _MOST_SECONDS))
        return _write(storage, rest) if rest > first else speed
    except OSError:
        return None  # the quota perhaps, which is looked at by itself


def _write(storage: LocalStorage, count: int) -> float:
    image = mmap.mmap(-1, count)  # aligned, as an arena is
    pattern = os.urandom(min(count, 1 << 20))  # some file systems compress, and would look quick
    for offset in range(0, count, len(pattern)):
        image[offset : min(offset + len(pattern), count)] = pattern[: min(len(pattern), count - offset)]
    began = time.monotonic()
    with memoryview(image) as view:
        storage.write("large", view)
    return count / (time.monotonic() - began)


def _speed_finding(speed: float | None) -> Finding:
    if speed is None:
        return Finding(
            "write speed",
            Verdict.UNKNOWN,
            "there is no room to try it",
            "how long a save takes is not known",
            "Free some.",
        )
    return Finding("write speed", Verdict.PASS, f"{speed / 1e6:.0f} MB/s from this node", "durably, by one rank")


def room(folder: Path, size: int | None, keep: int) -> Finding:
    """Free space for the checkpoints that are kept and the one that is written meanwhile."""
    stats = os.statvfs(nearest(folder))
    return judge_room(stats.f_bavail * stats.f_frsize, stats.f_favail if stats.f_files else None, size, keep)


def judge_room(free: int, files: int | None, size: int | None, keep: int) -> Finding:
    """`files`: how many can still be made, None where the file system sets no number. `size`: of the state."""
    name, remedy = "free space", "Free some, or lower `keep`."
    found = in_words(free)
    if files is not None and files < _FEW_FILES:
        few = "each checkpoint is two files a rank and some more"
        return Finding(name, Verdict.FAIL if files == 0 else Verdict.WARN, f"{found}, {files} files", few, remedy)
    if size is None:
        unknown = f"it has to hold {keep + 1} checkpoints, of which the size is not known"
        return Finding(name, Verdict.UNKNOWN, found, unknown, "Give --state-size, e.g. --state-size 1.5GB.")
    needed = (keep + 1) * size
    all_of_them = f"{keep + 1} checkpoints (keep={keep}, and the one being written) need {in_words(needed)}"
    if free < size:
        return Finding(name, Verdict.FAIL, found, f"{all_of_them}, and not even one fits", remedy)
    if free < needed:
        return Finding(name, Verdict.WARN, found, f"{all_of_them}: saving will stop when it is full", remedy)
    return Finding(name, Verdict.PASS, found, all_of_them)
