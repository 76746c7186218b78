"""Which file system a folder lies on, and who else sees it.

Law: types are judged by name; what a file system can do is tried elsewhere (checks/folder.py).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

import psutil

from autoresume.base.findings import Finding, Verdict, format_bytes

_SHARED = re.compile(
    r"(nfs4?|lustre|gpfs|beegfs|fhgfs|ceph|cifs|smb3|smbfs|wekafs|panfs|pvfs2|orangefs|glusterfs|afs|gfs2|ocfs2|9p|virtiofs"
    r"|quobyte|vastfs|fuse\.(?!(overlayfs|fuse-overlayfs|squashfuse)).*)\Z"
)
_IN_MEMORY = re.compile(r"(tmpfs|ramfs|devtmpfs)\Z")
_CONTAINER = re.compile(r"(overlay|aufs|squashfs|fuse\.(fuse-)?overlayfs|fuse\.squashfuse)\Z")
_TIMEOUT_SECONDS = 10.0


def kind_of(folder: Path) -> tuple[str, str]:
    """(type, mount point) of the file system that `folder` lies on."""
    real = str(folder.resolve())
    mounts = [(part.fstype, part.mountpoint) for part in psutil.disk_partitions(all=True)]
    inside = [pair for pair in mounts if real == pair[1] or real.startswith(pair[1].rstrip("/") + "/")]
    # The last of equals: what was mounted later hides what was there.
    return max(reversed(inside), key=lambda pair: len(pair[1]), default=("unknown", "/"))


def seen_by_others(folder: Path, kind: str, several: bool) -> Finding:
    """`several`: the run's processes, or its lives, may be on several machines."""
    name, found = "file system", f"{folder.resolve()} is on {kind}"
    elsewhere = "Put the run directory on a file system that all nodes share (--run-dir, run_dir, AUTORESUME_RUN_DIR)."
    if _SHARED.match(kind):
        return Finding(name, Verdict.PASS, found, "a file system that several machines can share")
    verdict = Verdict.FAIL if several else Verdict.WARN
    if _IN_MEMORY.match(kind):
        return Finding(
            name, verdict, found, "it is memory: gone when the machine restarts, unseen by others", elsewhere
        )
    if _CONTAINER.match(kind):
        return Finding(name, verdict, found, "it belongs to a container, and is gone with it", elsewhere)
    if any(str(folder.resolve()).startswith(f"{place}/") for place in ("/tmp", "/var/tmp", "/dev/shm")):  # noqa: S108
        return Finding(name, Verdict.WARN, found, "temporary: cleaned up, and each node has its own", elsewhere)
    if several:
        means = "it looks local: a life on another node finds no checkpoint, unless all nodes see this folder"
        return Finding(name, Verdict.WARN, found, means, elsewhere)
    return Finding(name, Verdict.PASS, found, "a local disk, which serves a run on this machine")


# -- quota --------------------------------------------------------------------------------------------


def quota(folder: Path, kind: str, mounted: str, needed: int | None) -> Finding | None:
    """What this user may still write, where a quota tool says so; None where there is none."""
    user = pwd.getpwuid(os.getuid()).pw_name if _known_user() else str(os.getuid())
    if kind == "lustre" and shutil.which("lfs"):
        command = ["lfs", "quota", "-q", "-u", user, mounted]
    elif shutil.which("quota") and not _IN_MEMORY.match(kind):
        command = ["quota", "-w", "-p", "-u", user, "-f", mounted]
    else:
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("quota", Verdict.UNKNOWN, f"{command[0]} gave no answer: {error}", "it may end the run's saves")
    return judge_quota(" ".join(command), left_of(done.stdout), needed)


def _known_user() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def left_of(text: str) -> int | None:
    """Bytes that are left by the table of `quota -w -p` or `lfs quota -q`; None if it sets no limit.

    A line is: file system, used, soft limit, hard limit, ...; in units of 1024 bytes, 0 for no limit, and * at
    what is exceeded. lfs gives a long name of a file system a line of its own.
    """
    left: list[int] = []
    for line in text.splitlines():
        words = [word.strip("*[]") for word in line.split()]
        numbers = words if words and words[0].isdigit() else words[1:]
        if len(numbers) < 3 or not all(word.isdigit() for word in numbers[:3]):
            continue
        used, soft, hard = (int(word) for word in numbers[:3])
        limits = [limit for limit in (soft, hard) if limit > 0]
        if limits:
            left.append((min(limits) - used) * 1024)
    return min(left, default=None)


def judge_quota(command: str, left: int | None, needed: int | None) -> Finding:
    if left is None:
        return Finding("quota", Verdict.PASS, f"`{command}` tells of no limit", "the file system's free space counts")
    found, free = f"{format_bytes(left)} left", "Free some, lower `keep`, or ask for more."
    if left <= 0:
        return Finding("quota", Verdict.FAIL, found, "nothing can be saved", free)
    if needed is not None and left < needed:
        short = f"the checkpoints need {format_bytes(needed)}: saves will fail"
        return Finding("quota", Verdict.FAIL, found, short, free)
    return Finding(
        "quota", Verdict.PASS, found, "enough for the checkpoints" if needed else "the state's size is unknown"
    )
