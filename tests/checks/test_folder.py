"""What is tried in the run directory: on real file systems, and on a storage that is broken on purpose."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from autoresume.base.findings import Finding, Verdict
from autoresume.checks import filesystem, folder, meeting
from autoresume.checks.folder import judge_room
from autoresume.storage.local import LocalStorage

GB = 10**9


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def takes_direct_writes(place: Path) -> bool:
    """Whether a file here can be opened past the page cache, found out in another way."""
    done = subprocess.run(
        ["dd", "if=/dev/zero", f"of={place}/dd", "bs=4096", "count=1", "oflag=direct"],
        check=False,
        stderr=subprocess.DEVNULL,
    )
    (place / "dd").unlink(missing_ok=True)
    return done.returncode == 0


def test_a_disk_passes_and_is_left_as_it_was(tmp_path: Path) -> None:
    """All is tried below the nearest folder that is there; nothing is left, the run directory is not made."""
    found, writing = folder.look(tmp_path / "runs" / "gpt")
    assert {finding.verdict for finding in found} == {Verdict.PASS}
    names = ["durable writes", "rename", "hard links", "direct writes", "write speed"]
    assert list(by_name(found)) == names
    assert ("works" in by_name(found)["direct writes"].found) == takes_direct_writes(tmp_path)
    assert writing.bytes_per_second is not None
    assert writing.bytes_per_second > 1e6
    assert writing.small_seconds is not None
    assert 0 < writing.small_seconds < 30
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_64_mebibytes_are_written(tmp_path: Path) -> None:
    """At any moment, however quick the disk is."""
    written: list[int] = []

    class Counting(LocalStorage):
        def write(self, name: str, data: bytes | memoryview) -> None:
            written.append(len(data))
            super().write(name, data)

    assert folder._speed(Counting(tmp_path)) is not None
    assert 0 < sum(written) <= 64 << 20


def test_a_folder_that_can_t_be_written_fails() -> None:
    """It says which, and what to do; all else would be a guess."""
    found, writing = folder.look(Path("/proc/runs"))
    assert [finding.verdict for finding in found] == [Verdict.FAIL]
    assert "/proc" in found[0].found
    assert writing.bytes_per_second is None


def test_a_file_that_is_replaced_in_two_halves_is_noticed(tmp_path: Path) -> None:
    """A file system on which a published file can be seen half written fails."""

    class Tearing(LocalStorage):
        def write(self, name: str, data: bytes | memoryview) -> None:
            with open(self.path(name), "r+b" if self.path(name).exists() else "wb", buffering=0) as file:
                file.write(data[: len(data) // 2])
                for reader in threading.enumerate():
                    if reader is not threading.current_thread() and reader.name == "autoresume-doctor":
                        reader.join(10)  # it ends when it has seen the half
                file.write(data[len(data) // 2 :])

    finding = folder._rename(Tearing(tmp_path))
    assert finding.verdict is Verdict.FAIL
    assert "not atomic" in finding.found


def test_what_was_renamed_must_be_seen_at_once(tmp_path: Path) -> None:
    """A file system that shows the old content for a while fails."""

    class Late(LocalStorage):
        def write(self, name: str, data: bytes | memoryview) -> None:
            if not self.path(name).exists():
                super().write(name, data)

    assert "the old content" in folder._rename(Late(tmp_path)).found


def test_a_disk_that_fails_to_sync_fails(tmp_path: Path) -> None:
    """An error of fsync is quoted: nothing that is saved there can be relied on."""

    class Broken(LocalStorage):
        def _sync_file(self, descriptor: int, path: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

    finding, seconds = folder._durable(Broken(tmp_path))
    assert finding.verdict is Verdict.FAIL
    assert "Input/output error" in finding.found
    assert seconds is None


def test_a_full_file_system_in_memory(tmp_path: Path) -> None:
    """On a real tmpfs of 1 MiB the command tells what it is, that the state doesn't fit, and that it is no place."""
    program = [
        sys.executable,
        "-m",
        "autoresume",
        "doctor",
        "--json",
        "--state-size=10MB",
        f"--run-dir={tmp_path}/runs",
    ]
    script = f'mount -t tmpfs -o size=1m none "{tmp_path}" || exit 125; PATH=/without/slurm; exec "$@"'
    prefix = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run([*prefix, "sh", "-c", script, "sh", *program], capture_output=True, text=True, check=False)
    if done.returncode == 125 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    assert done.returncode == 1, done.stderr
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert "tmpfs" in rows["file system"]["found"]
    assert rows["file system"]["verdict"] != "pass"
    assert rows["write speed"]["verdict"] == "unknown"
    assert rows["free space"]["verdict"] == "fail"
    assert "not even one fits" in rows["free space"]["means"]
    assert rows["last save"]["verdict"] == "unknown"


@pytest.mark.parametrize(
    ("free", "files", "size", "verdict"),
    [
        (100 * GB, None, GB, Verdict.PASS),
        (100 * GB, 10**6, GB, Verdict.PASS),
        (100 * GB, 500, GB, Verdict.WARN),
        (100 * GB, 0, GB, Verdict.FAIL),
        (3 * GB, None, GB, Verdict.WARN),
        (GB // 2, None, GB, Verdict.FAIL),
        (4 * GB, None, GB, Verdict.PASS),
        (4 * GB, None, None, Verdict.UNKNOWN),
    ],
)
def test_room_for_the_checkpoints_that_are_kept(
    free: int, files: int | None, size: int | None, verdict: Verdict
) -> None:
    """keep=3 needs room for four, since an old one goes only when a new one is there."""
    assert judge_room(free, files, size, keep=3).verdict is verdict


# -- the file system's type -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "alone", "several"),
    [
        ("nfs4", Verdict.PASS, Verdict.PASS),
        ("lustre", Verdict.PASS, Verdict.PASS),
        ("fuse.juicefs", Verdict.PASS, Verdict.PASS),
        ("ext4", Verdict.PASS, Verdict.WARN),
        ("xfs", Verdict.PASS, Verdict.WARN),
        ("tmpfs", Verdict.WARN, Verdict.FAIL),
        ("overlay", Verdict.WARN, Verdict.FAIL),
        ("fuse.fuse-overlayfs", Verdict.WARN, Verdict.FAIL),
    ],
)
def test_who_sees_a_file_system(kind: str, alone: Verdict, several: Verdict) -> None:
    """A run on one machine is content with a disk; the lives of a job are anywhere."""
    place = Path("/home/anna/runs")
    assert filesystem.seen_by_others(place, kind, several=False).verdict is alone
    assert filesystem.seen_by_others(place, kind, several=True).verdict is several


def test_tmp_is_temporary_whatever_its_type() -> None:
    """A job's own /tmp is gone after it."""
    finding = filesystem.seen_by_others(Path("/tmp/runs"), "ext4", several=True)
    assert finding.verdict is Verdict.WARN
    assert "temporary" in finding.found + finding.means


def test_the_type_is_that_of_the_nearest_mount() -> None:
    """As the kernel's own list has it."""
    assert filesystem.kind_of(Path("/dev/shm")) == ("tmpfs", "/dev/shm")
    assert filesystem.kind_of(Path("/proc/self")) == ("proc", "/proc")
    at_root = subprocess.run(["findmnt", "-no", "FSTYPE", "/"], capture_output=True, text=True, check=True).stdout
    assert filesystem.kind_of(Path("/")) == (at_root.strip(), "/")


QUOTA = """Disk quotas for user anna (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
      /dev/sda1 2000000  {soft}  {hard}       0     100    1000    2000       0
"""
LFS = "/scratch/lustre/project\n                2000000*  {soft}  {hard}       -       4       0       0       -\n"


@pytest.mark.parametrize("table", [QUOTA, LFS])
@pytest.mark.parametrize(
    ("soft", "hard", "left"),
    [(0, 0, None), (3000000, 4000000, 1000000), (0, 2500000, 500000), (1000000, 0, -1000000)],
)
def test_what_a_quota_leaves(table: str, soft: int, hard: int, left: int | None) -> None:
    """In the tables of quota and lfs quota; the soft limit counts, and the one of files does not."""
    expected = None if left is None else left * 1024
    assert filesystem.left_of(table.format(soft=soft, hard=hard)) == expected


def test_no_quota_is_no_limit() -> None:
    """`quota` says so in words, without a table."""
    assert filesystem.left_of("Disk quotas for user anna (uid 1000): none\n") is None


@pytest.mark.parametrize(
    ("left", "needed", "verdict"),
    [(None, GB, Verdict.PASS), (2 * GB, GB, Verdict.PASS), (GB, 2 * GB, Verdict.FAIL), (0, None, Verdict.FAIL)],
)
def test_a_quota_that_is_too_small_fails(left: int | None, needed: int | None, verdict: Verdict) -> None:
    """Saving would fail in the middle of the night."""
    assert filesystem.judge_quota("quota", left, needed).verdict is verdict


# -- two nodes --------------------------------------------------------------------------------------


def test_two_players_measure_each_other(tmp_path: Path) -> None:
    """In one folder they meet whoever comes first, and each round is longer than two durable writes are short."""
    rounds: dict[bool, list[float]] = {}
    second = threading.Thread(target=lambda: rounds.update({False: meeting.play(tmp_path, False)}))
    second.start()
    rounds[True] = meeting.play(tmp_path, True)
    second.join()
    assert {len(took) for took in rounds.values()} == {4}
    assert all(seconds > 0 for seconds in rounds[True])


def test_a_player_alone_gives_up(tmp_path: Path) -> None:
    """Within its patience, saying what it has not seen; a folder that isn't there is not made."""
    with pytest.raises(TimeoutError, match="pong-0 was not seen"):
        meeting.play(tmp_path, True, patience_seconds=0.1)
    with pytest.raises(TimeoutError, match="elsewhere was not seen"):
        meeting.play(tmp_path / "elsewhere", False, patience_seconds=0.1)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("nodes", "rounds", "verdict"),
    [
        (("n1", "n2"), [0.02, 0.04], Verdict.PASS),
        (("n1", "n2"), [0.02, 60.0], Verdict.WARN),
        (("n1", "n1"), [0.02], Verdict.UNKNOWN),
    ],
)
def test_how_late_is_late(nodes: tuple[str, ...], rounds: list[float], verdict: Verdict) -> None:
    """Half of the longest round counts."""
    assert meeting.judge(nodes, rounds).verdict is verdict
