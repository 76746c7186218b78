"""A process that is killed, for real, at each failpoint of saving."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autoresume.base import failpoints
from autoresume.format.names import CheckpointName
from tests import warm
from tests.checkpoint import lives
from tests.storage.forgetful import UnsyncedStorage

LARGE = 4 * 1024 * 1024 + 100
"""From here on files are written directly, past the page cache."""

# What a life of three saves reaches, and how often.
REACHED = {
    "incarnation.claimed": 1,
    "storage.write.before_sync": 27,
    "storage.write.before_rename": 26,
    "storage.write.before_folder_sync": 26,
    "persist.room": 6,
    "persist.shard_written": 6,
    "persist.part_written": 6,
    "commit.before_manifest": 3,
    "commit.after_manifest": 3,
    "prune.before_remove": 1,
    "storage.remove.renamed": 1,
    "prune.after_remove": 1,
}


def test_all_failpoints_are_tried(tmp_path: Path) -> None:
    """The table above is what really happens: a failpoint that is added is added to it, and to the kills below."""
    reached: dict[str, int] = {}

    def count(name: str) -> None:
        reached[name] = reached.get(name, 0) + 1

    failpoints.set_observer(count)
    try:
        lives.live(UnsyncedStorage(tmp_path), 3, lambda name: None)
    finally:
        failpoints.set_observer(None)
    assert reached == REACHED


def run_until_killed(folder: Path, failpoint: str | None, image_bytes: int = 4) -> tuple[int, list[CheckpointName]]:
    """A life in a process of its own: (how it ended, the commits that it told of)."""
    environment = {key: value for key, value in os.environ.items() if key != "AUTORESUME_FAILPOINT"}
    if failpoint is not None:
        environment["AUTORESUME_FAILPOINT"] = failpoint
    command = [sys.executable, lives.__file__, str(folder), "in turn", str(image_bytes)]
    result = warm.run(command, env=environment, stdout=subprocess.PIPE, check=False)
    told = [CheckpointName.parse(line) for line in result.stdout.decode().split()]
    return result.returncode, [name for name in told if name is not None]


def check_after_kill(folder: Path, told: list[CheckpointName], image_bytes: int = 4) -> None:
    storage = UnsyncedStorage(folder)
    lives.check(storage, told, image_bytes)
    lives.check_going_on(storage, told, image_bytes)


@pytest.mark.parametrize(
    ("failpoint", "time"),
    [(name, time) for name, times in REACHED.items() for time in sorted({1, 1 + times // 2, times})],
)
def test_killed_at_each_failpoint(memory: Path, failpoint: str, time: int) -> None:
    """SIGKILL there: what was committed is whole and is found, and the next life goes on and cleans up."""
    status, told = run_until_killed(memory, f"{failpoint}:{time}")
    assert status == -signal.SIGKILL
    check_after_kill(memory, told)


@pytest.mark.parametrize(
    "failpoint", ["storage.write.block:3", "storage.write.before_sync:13", "commit.before_manifest:2"]
)
def test_killed_while_writing_large_files(tmp_path: Path, failpoint: str) -> None:
    """The same in the middle of a direct write."""
    status, told = run_until_killed(tmp_path, failpoint, LARGE)
    if failpoint.startswith("storage.write.block") and status == 0:
        pytest.skip("this file system does not take direct writes")
    assert status == -signal.SIGKILL
    assert len(told) == 1
    check_after_kill(tmp_path, told, LARGE)


def test_a_life_that_is_not_killed(tmp_path: Path) -> None:
    """Without a failpoint the process ends by itself, having committed all."""
    status, told = run_until_killed(tmp_path, None)
    assert status == 0
    assert told == [lives.name_of(step, 1) for step in (10, 20, 30)]
    check_after_kill(tmp_path, told)
