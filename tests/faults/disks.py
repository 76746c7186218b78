"""Small real file systems, and what goes wrong with them. Linux, root and loop devices are needed.

Law: a disk is mounted below a test's own folder, and gone when its block ends, whatever happened inside.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024 * 1024
_EXT4_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_THE_LOG = 2
FILLER = "filler"


def unavailable(reason: str) -> None:
    """CI must never be green because its disks were missing."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A file system at `folder`; `options` are those of mount."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        command("mount", *options, str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        unavailable(f"nothing can be mounted here: {getattr(error, 'stderr', None) or error}")
    try:
        yield folder
    finally:
        while os.path.ismount(folder):
            if subprocess.run(["umount", str(folder)], capture_output=True).returncode:
                command("umount", "--lazy", str(folder))


def tmpfs(folder: Path, mebibytes: int) -> contextlib.AbstractContextManager[Path]:
    return mounted(folder, "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs")


@contextlib.contextmanager
def ext4(folder: Path, mebibytes: int) -> Iterator[Path]:
    image = folder.with_name(f"{folder.name}.img")
    with open(image, "wb") as file:
        file.truncate(mebibytes * MIB)
    try:
        _made("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        with mounted(folder, "-t", "ext4", "-o", "loop,errors=remount-ro", str(image)):
            yield folder
    finally:
        image.unlink()


def overlay(folder: Path, lower: Path) -> contextlib.AbstractContextManager[Path]:
    """What a container sees: `lower` can't be changed, and what is written goes elsewhere."""
    upper, work = folder.with_name("upper"), folder.with_name("work")
    for one in (upper, work):
        one.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    return mounted(folder, "-t", "overlay", "-o", options, "overlay")


def mount_again(folder: Path) -> None:
    """What a machine does when it boots again: the disk's own log is read, and what it holds is put right."""
    command("umount", str(folder))
    command("mount", "-t", "ext4", "-o", "loop,errors=remount-ro", f"{folder}.img", str(folder))


@contextlib.contextmanager
def btrfs_with_quota(folder: Path, mebibytes: int) -> Iterator[Path]:
    """The one file system whose quotas hold for root as well."""
    if shutil.which("mkfs.btrfs") is None:
        unavailable("there is no mkfs.btrfs (package btrfs-progs)")
    image = folder.with_name(f"{folder.name}.img")
    with open(image, "wb") as file:
        file.truncate(mebibytes * MIB)
    try:
        _made("mkfs.btrfs", "-q", str(image))
        with mounted(folder, "-t", "btrfs", "-o", "loop", str(image)):
            command("btrfs", "quota", "enable", str(folder))
            yield folder
    finally:
        image.unlink()


def _made(*words: str) -> None:
    try:
        command(*words)
    except FileNotFoundError:
        unavailable(f"there is no {words[0]}")


# -- what goes wrong ----------------------------------------------------------------------------------------


def fill(folder: Path, leave: int = 0) -> None:
    """Take all room but `leave` bytes."""
    os.sync()
    with open(folder / FILLER, "ab") as file:
        for size in (MIB, 64 * 1024, 4096, 1024):
            with contextlib.suppress(OSError):
                while free_bytes(folder) - size >= leave:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)


def free_bytes(folder: Path) -> int:
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def empty(folder: Path) -> None:
    (folder / FILLER).unlink()
    os.sync()


def shut_down(folder: Path) -> None:
    """From now on every access is an input/output error, and what was not synced is lost (xfstests' godown)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _WITHOUT_THE_LOG))
    finally:
        os.close(descriptor)


def read_only(folder: Path) -> None:
    """What ext4 does at an error of the disk, also while files are open for writing: it allows no more of it."""
    loop = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if f" {folder} " in line)
    Path(f"/sys/fs/ext4/{Path(loop).name}/trigger_fs_error").write_text("a test")


def limit(folder: Path, size: str) -> None:
    """A quota of so much, in btrfs's words."""
    os.sync()
    command("btrfs", "qgroup", "limit", size, str(folder))


def no_limit(folder: Path) -> None:
    command("btrfs", "quota", "disable", str(folder))
