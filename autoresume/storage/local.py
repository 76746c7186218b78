"""A POSIX folder, and the law of durable writes.

Law: a file is published by temp (opened exclusively), write, fsync, rename, fsync of the folder,
and this is the only module that does it. Large files are written with O_DIRECT where the file
system takes it (it is 1.4 times as fast as buffered writing with fsync, and leaves the page cache to
training), else buffered. A test replaces `_sync_file` and `_sync_folder` to forget what was not synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from autoresume.base.failpoints import failpoint
from autoresume.format import names
from autoresume.format.names import is_inside, temporary
from autoresume.storage import direct
from autoresume.storage.reading import OpenFile

_NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


class LocalStorage:
    """Files below `root`. Folders come into being when the first file is written into them."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._durable: set[Path] = set()
        """Folders whose names this process has made durable, whoever made them."""
        self._plain: set[Path] = set()
        """Folders that are known to be no symbolic links."""

    def __repr__(self) -> str:
        return f"LocalStorage({str(self.root)!r})"

    def path(self, name: str) -> Path:
        """Where `name` lies. Names that would leave the root are refused with ValueError."""
        if not is_inside(name):
            raise ValueError(f"{name!r} is not a name inside a storage")
        return self.root / name

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, name: str) -> int | None:
        try:
            stats = os.lstat(self._unlinked(name))
            if stat.S_ISLNK(stats.st_mode):
                if _is_deep(name):
                    raise OSError(errno.ELOOP, "a symbolic link, which is not followed", str(self.path(name)))
                stats = os.stat(self.path(name))
            return stats.st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str, into: memoryview | None = None, offset: int = 0) -> bytes:
        descriptor = self._open(name)
        try:
            if into is None:
                with open(descriptor, "rb", closefd=False) as file:
                    return file.read()
            done = 0
            while done < len(into):
                count = os.preadv(descriptor, [into[done:]], offset + done)
                if count == 0:
                    raise EOFError(f"{name} ends at byte {offset + done}, {len(into) - done} bytes too early")
                done += count
        finally:
            os.close(descriptor)
        return b""

    def reader(self, name: str) -> OpenFile:
        return OpenFile(self._open(name), name)

    def _open(self, name: str) -> int:
        path = self._unlinked(name)
        flags = os.O_NONBLOCK | (os.O_NOFOLLOW if _is_deep(name) else 0)  # a pipe would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        return descriptor

    def _unlinked(self, name: str) -> Path:
        """The same as `path`, for reading. Somebody may keep a folder of the root, or one below it, on another disk;
        symbolic links further down lead out of what was written here, and are refused with OSError."""
        path = self.path(name)
        folder = path.parent
        while _is_deep(folder.relative_to(self.root).as_posix()) and folder not in self._plain:
            if folder.is_symlink():
                raise OSError(errno.ELOOP, "a symbolic link, which is not followed", str(folder))
            self._plain.add(folder)
            folder = folder.parent
        return path

    def write(self, name: str, data: bytes | memoryview) -> None:
        self._make_folder(self.path(name).parent)
        self.add(name, data)

    def add(self, name: str, data: bytes | memoryview) -> None:
        path = self.path(name)
        temp = self._write_temporary(path, data)
        failpoint("storage.write.before_rename")
        _rename(temp, path)
        failpoint("storage.write.before_folder_sync")
        self._sync_folder(path.parent)

    def sync(self, name: str) -> None:
        path = self.path(name)
        if path.is_dir():
            self._sync_folder(path)
            self._make_folder(path)
            return
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            self._sync_file(descriptor, path)
        finally:
            os.close(descriptor)
        self._sync_folder(path.parent)

    def link(self, name: str, new: str, or_copy: bool = True) -> None:
        source, target = self.path(name), self.path(new)
        self._make_folder(target.parent)
        temp = Path(temporary(str(target), f"{os.getpid():x}-{secrets.token_hex(4)}"))
        try:
            os.link(source, temp)
        except OSError as error:
            if not or_copy or error.errno not in _NO_LINK | {errno.EXDEV}:
                raise
            with open(source, "rb") as file, self._temporary_file(temp) as copy:
                shutil.copyfileobj(file, copy, direct.BLOCK)
        _rename(temp, target)
        temp.unlink(missing_ok=True)  # renaming a file to another name of itself leaves both
        self._sync_folder(target.parent)

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A file to write into, published atomically and durably when the block ends well, and not at all else."""
        path = self.path(name)
        self._make_folder(path.parent)
        temp = Path(temporary(str(path), f"{os.getpid():x}-{secrets.token_hex(4)}"))
        with self._temporary_file(temp) as file:
            yield file
        _rename(temp, path)
        self._sync_folder(path.parent)

    @contextlib.contextmanager
    def _temporary_file(self, temp: Path) -> Iterator[BinaryIO]:
        try:
            with open(temp, "xb") as file:
                yield file
                file.flush()
                self._sync_file(file.fileno(), temp)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise

    def create(self, name: str, data: bytes) -> bool:
        path = self.path(name)
        if path.exists():
            return False
        self._make_folder(path.parent)
        temp = self._write_temporary(path, data)
        try:
            # A hard link fails if the name exists, also over NFS, and shows the whole content at once.
            os.link(temp, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return self._create_without_link(path, data)
        finally:
            temp.unlink()
        self._sync_folder(path.parent)
        return True

    def move(self, folder: str, new: str) -> None:
        target = self.path(new)
        self._make_folder(target.parent)
        if target.exists():
            raise FileExistsError(errno.EEXIST, "already there", str(target))
        source = self.path(folder)
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy_over(source, target)
        self._sync_folder(target.parent)
        self._sync_folder(source.parent)

    def _copy_over(self, source: Path, target: Path) -> None:
        """For folders that can't be renamed, since they lie in a lower layer of overlayfs, such as an image."""
        temp = Path(temporary(str(target), secrets.token_hex(4)))
        shutil.copytree(source, temp, symlinks=True)
        for folder, _, files in os.walk(temp, topdown=False):
            for file in files:
                with open(Path(folder, file), "rb") as opened:
                    self._sync_file(opened.fileno(), Path(folder, file))
            self._sync_folder(Path(folder))
        os.rename(temp, target)
        self._sync_folder(target.parent)
        _remove_tree(source)

    def remove(self, name: str) -> None:
        path = self.path(name)
        if names.is_temporary(path.name):
            _remove_tree(path)  # somebody's grave already
        elif path.is_dir() and not path.is_symlink():
            # What is half deleted must not look like a checkpoint: first the name goes, then the content.
            grave = Path(temporary(str(path), secrets.token_hex(4)))
            try:
                os.rename(path, grave)
            except FileNotFoundError:
                return  # another process deletes the same
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # A lower layer of overlayfs: what commits a checkpoint lies at its top, and goes first.
                for file in [file for file in path.iterdir() if not file.is_dir()]:
                    file.unlink(missing_ok=True)
                grave = path
            failpoint("storage.remove.renamed")
            _remove_tree(grave)
        else:
            path.unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        stats = os.statvfs(folder)
        return stats.f_bavail * stats.f_frsize

    # -- the durable write ------------------------------------------------------------------------

    def _write_temporary(self, path: Path, data: bytes | memoryview) -> Path:
        """A synced file beside `path`. What was written is removed again when writing fails."""
        temp = Path(temporary(str(path), f"{os.getpid():x}-{secrets.token_hex(4)}"))
        descriptor = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            view = memoryview(data).cast("B")
            direct.write(temp, descriptor, view)
            failpoint("storage.write.before_sync")
            self._sync_file(descriptor, temp)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return temp

    def _create_without_link(self, path: Path, data: bytes) -> bool:
        """For file systems without hard links: exclusive, but a crash may leave it empty."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        try:
            direct.write_buffered(descriptor, memoryview(data))
            self._sync_file(descriptor, path)
        finally:
            os.close(descriptor)
        self._sync_folder(path.parent)
        return True

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and those above it. Their names are durable when it returns, also where another process
        made them, which may have died before it synced them."""
        if folder in self._durable and folder.is_dir():
            return
        if folder != self.root and self.root in folder.parents:
            self._make_folder(folder.parent)
        elif not folder.parent.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        self._sync_folder(folder.parent)
        self._durable.add(folder)

    def _sync_file(self, descriptor: int, path: Path) -> None:
        os.fsync(descriptor)

    def _sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network and FUSE file systems can't sync a folder; they make names durable by themselves.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)


def _is_deep(name: str) -> bool:
    """Whether a name lies so deep that its last component may be no symbolic link."""
    return name.count("/") >= 2


def _rename(temp: Path, path: Path) -> None:
    """Publish `temp`; it is removed where that fails."""
    try:
        os.rename(temp, path)
    except OSError:
        temp.unlink(missing_ok=True)
        raise


def _remove_tree(path: Path) -> None:
    """Delete all of it, also while another process deletes the same."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
        if not path.exists():
            return
