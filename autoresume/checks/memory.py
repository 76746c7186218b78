"""The memory that snapshots are kept in: tmpfs, and what bounds a job's memory.

Law: `look` reads the machine; the findings are pure.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoresume.base.findings import Finding, Verdict, format_bytes
from autoresume.checks.filesystem import kind_of
from autoresume.handoff.mailbox import memory_parent

_SNAPSHOTS = 2
"""At most one is being persisted and one being taken."""
_IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Memory:
    """Bytes, all of them."""

    folder: Path
    kind: str
    """The file system's type; empty if there is no such folder, or it can't be written to."""
    total: int
    free: int
    available: int
    """Of the machine's memory."""
    limit: int | None = None
    """Of this process's control group, None for none."""
    used: int = 0
    """Of that limit."""


def look(folder: Path | None = None) -> Memory:
    folder = memory_parent() if folder is None else folder
    limit, used = cgroup_limit(Path("/proc/self/cgroup").read_text(), _CGROUPS)
    available = psutil.virtual_memory().available
    if not os.access(folder, os.W_OK | os.X_OK):
        return Memory(folder, "", 0, 0, available, limit, used)
    stats = os.statvfs(folder)
    total, free = stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize
    return Memory(folder, kind_of(folder)[0], total, free, available, limit, used)


def cgroup_limit(groups: str, mounted: Path) -> tuple[int | None, int]:
    """The tightest memory limit of the groups that /proc/PID/cgroup lists, and what is used of it.

    `mounted` is where control groups are seen. Version 1 has a hierarchy for memory, version 2 one for all.
    """
    found: list[tuple[int, int]] = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, limit_file, used_file = mounted / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif not controllers:
            root, limit_file, used_file = mounted, "memory.max", "memory.current"
        else:
            continue
        group = root if ".." in path else root / path.lstrip("/")  # a group outside of what this container sees
        for folder in (group, *(parent for parent in group.parents if parent == root or root in parent.parents)):
            limit, used = _number(folder / limit_file), _number(folder / used_file)
            if limit is not None and limit < _NO_LIMIT:
                found.append((limit, used or 0))
    return min(found, key=lambda pair: pair[0] - pair[1], default=(None, 0))


def _number(file: Path) -> int | None:
    try:
        text = file.read_text()
    except OSError:
        return None
    return int(text) if re.fullmatch(r"\s*\d+\s*", text) else None


def findings(memory: Memory, share: int | None) -> list[Finding]:
    """`share`: the bytes of this node's part of the state, if known."""
    return [_room(memory, share), _bound(memory, share)]


def _room(memory: Memory, share: int | None) -> Finding:
    name, larger = "memory folder", "Give the nodes a larger /dev/shm, or name another tmpfs in AUTORESUME_MEMORY."
    lost = "snapshots are kept in the ranks' own memory instead, and are lost with a rank that is killed"
    if not memory.kind:
        return Finding(name, Verdict.WARN, f"{memory.folder} is not there, or closed to you", lost, larger)
    found = f"{memory.folder}: {memory.kind}, {format_bytes(memory.free)} of {format_bytes(memory.total)} free"
    if memory.kind not in _IN_MEMORY:
        slow = "training stands still for as long as that disk takes to store a snapshot"
        return Finding(name, Verdict.WARN, found, slow, "Name a tmpfs in AUTORESUME_MEMORY.")
    if share is None:
        unknown = f"it has to hold {_SNAPSHOTS} snapshots of this node's share of the state, whose size is not known"
        return Finding(name, Verdict.UNKNOWN, found, unknown, "Give --state-size, e.g. --state-size 1.5GB.")
    needed = f"{_SNAPSHOTS} snapshots of this node's {format_bytes(share)} need {format_bytes(_SNAPSHOTS * share)}"
    if memory.free < share:
        return Finding(name, Verdict.WARN, found, f"{needed}: {lost}", larger)
    if memory.free < _SNAPSHOTS * share:
        waits = "there is room for one only, and training waits while it is persisted"
        return Finding(name, Verdict.WARN, found, f"{needed}: {waits}", larger)
    return Finding(name, Verdict.PASS, found, f"{needed}: they fit")


def _bound(memory: Memory, share: int | None) -> Finding:
    name = "memory limit"
    if memory.limit is None:
        free, found = memory.available, f"no limit, {format_bytes(memory.available)} of the machine available"
    else:
        free = min(memory.available, memory.limit - memory.used)
        found = f"{format_bytes(memory.limit)} for this control group, {format_bytes(free)} of it left"
    counts = f"snapshots in {memory.folder} count against it"
    if share is None:
        if memory.limit is None:
            return Finding(name, Verdict.PASS, found, "nothing but the machine bounds what snapshots take")
        return Finding(name, Verdict.UNKNOWN, found, counts, "Give --state-size, e.g. --state-size 1.5GB.")
    needed = _SNAPSHOTS * share
    if free < needed:
        killed = f"{counts}: with {format_bytes(needed)} of them the job is killed for its memory"
        return Finding(name, Verdict.FAIL, found, killed, "Ask for more memory (--mem), or use more nodes.")
    left = f"{counts}: they take {format_bytes(needed)}, and leave {format_bytes(free - needed)} to the training"
    return Finding(name, Verdict.WARN if 2 * needed > free else Verdict.PASS, found, left, _more(needed, free))


def _more(needed: int, free: int) -> str:
    return f"Add {format_bytes(needed)} to what the training alone needs (--mem)." if 2 * needed > free else ""
