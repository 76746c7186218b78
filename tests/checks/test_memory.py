"""The memory for snapshots, and what bounds it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoresume.base.findings import Verdict
from autoresume.checks import memory
from autoresume.checks.memory import Memory, cgroup_limit, findings

GB = 10**9
ROOMY = Memory(Path("/dev/shm"), "tmpfs", total=64 * GB, free=64 * GB, available=200 * GB)
CGROUPS = Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("there", "share", "room", "bound", "words"),
    [
        (ROOMY, GB, Verdict.PASS, Verdict.PASS, "need 2.0 GB: they fit"),
        (ROOMY, None, Verdict.UNKNOWN, Verdict.PASS, "--state-size"),
        (replace(ROOMY, free=3 * GB), 2 * GB, Verdict.WARN, Verdict.PASS, "room for one only"),
        (replace(ROOMY, free=GB), 2 * GB, Verdict.WARN, Verdict.PASS, "lost with a rank that is killed"),
        (replace(ROOMY, kind=""), GB, Verdict.WARN, Verdict.PASS, "not there, or closed to you"),
        (replace(ROOMY, kind="ext4"), GB, Verdict.WARN, Verdict.PASS, "training stands still"),
        (replace(ROOMY, available=3 * GB), 2 * GB, Verdict.PASS, Verdict.FAIL, "killed for its memory"),
        (replace(ROOMY, limit=8 * GB, used=5 * GB), 2 * GB, Verdict.PASS, Verdict.FAIL, "3.0 GB of it left"),
        (replace(ROOMY, limit=8 * GB, used=GB), 2 * GB, Verdict.PASS, Verdict.WARN, "leave 3.0 GB to the training"),
        (replace(ROOMY, limit=64 * GB), 2 * GB, Verdict.PASS, Verdict.PASS, "leave 60.0 GB to the training"),
        (replace(ROOMY, limit=64 * GB), None, Verdict.UNKNOWN, Verdict.UNKNOWN, "64.0 GB for this control group"),
    ],
)
def test_room_for_two_snapshots(there: Memory, share: int | None, room: Verdict, bound: Verdict, words: str) -> None:
    """One that is being persisted and one that is taken: in tmpfs, and in what the job may use."""
    found = findings(there, share)
    assert [finding.verdict for finding in found] == [room, bound]
    assert words in " ".join(f"{finding.found} {finding.means} {finding.remedy}" for finding in found)


def group(folder: Path, limit: str, used: str, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, text in zip(names, (limit, used)):
        (folder / name).write_text(f"{text}\n")


def test_the_limit_of_a_job_counts_for_its_steps(tmp_path: Path) -> None:
    """Control groups of version 2: that of a group above holds, and of several the one that leaves least."""
    group(tmp_path / "slurm" / "job_7", "8000", "1000")
    group(tmp_path / "slurm" / "job_7" / "step_0", "max", "900")
    assert cgroup_limit("0::/slurm/job_7/step_0\n", tmp_path) == (8000, 1000)
    group(tmp_path / "slurm", "9000", "8900")
    assert cgroup_limit("0::/slurm/job_7/step_0\n", tmp_path) == (9000, 8900)


def test_version_1_has_a_hierarchy_for_memory(tmp_path: Path) -> None:
    """Its word for no limit is a huge number, and other hierarchies don't count."""
    groups = "5:freezer:/slurm/job_7\n4:memory:/slurm/job_7\n0::/\n"
    group(tmp_path / "memory", str(2**63 - 4096), "0", version=1)
    group(tmp_path / "memory" / "slurm" / "job_7", str(2**63 - 4096), "0", version=1)
    assert cgroup_limit(groups, tmp_path) == (None, 0)
    group(tmp_path / "memory" / "slurm" / "job_7", "5000", "100", version=1)
    group(tmp_path / "freezer" / "slurm" / "job_7", "10", "0", version=1)
    assert cgroup_limit(groups, tmp_path) == (5000, 100)


def test_a_group_that_is_out_of_sight(tmp_path: Path) -> None:
    """In a container the own group may lie outside of what is mounted: what is seen at the top counts."""
    group(tmp_path / "inside", "4000", "0")
    assert cgroup_limit("0::/../../elsewhere\n", tmp_path / "inside") == (4000, 0)
    assert cgroup_limit("0::/not/there\n", tmp_path / "empty") == (None, 0)


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of this machine, where we may make one."""
    root = CGROUPS / "memory" if (CGROUPS / "memory").is_dir() else CGROUPS
    folder = root / f"autoresume-doctor-{os.getpid()}"
    limit = folder / ("memory.limit_in_bytes" if root != CGROUPS else "memory.max")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        limit.write_text(str(256 << 20))
        yield folder
    except OSError:
        pytest.skip("control groups have no memory limit here")
    finally:
        folder.rmdir()


def test_a_real_limit_is_found_and_files_in_memory_count_against_it(real_group: Path) -> None:
    """A process under a limit of 256 MiB is told of it; what it writes to /dev/shm is used of it."""
    program = """
import os, sys, tempfile
from autoresume.checks.memory import look
open(os.path.join(sys.argv[1], "cgroup.procs"), "w").write(str(os.getpid()))
before = look()
with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
    file.write(bytes(64 << 20)); file.flush()
    print(before.limit, look().used - before.used)
"""
    done = subprocess.run([sys.executable, "-c", program, str(real_group)], capture_output=True, text=True, check=True)
    limit, grown = (int(word) for word in done.stdout.split())
    assert limit == 256 << 20
    assert grown > 60 << 20


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    """The numbers are those of statvfs; a folder on a disk is told from one in memory."""
    stats = os.statvfs("/dev/shm")
    there = memory.look(Path("/dev/shm"))
    assert there.kind == "tmpfs"
    assert there.total == stats.f_blocks * stats.f_frsize
    assert there.available > 0
    assert memory.look(tmp_path / "missing").kind == ""
