"""autoresume bench where there is no Slurm."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from autoresume.checks.save_cost import Estimate, Trial
from autoresume.cli import cli
from autoresume.errors import UsageError
from tests import warm
from tests.cli.runs import FakeRun


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Slurm, no options of a run, and a folder for snapshots that nobody else uses."""
    monkeypatch.setenv("PATH", str(tmp_path / "without" / "slurm"))
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_CONF", "AUTORESUME_GRACE"):
        monkeypatch.delenv(name, raising=False)
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setenv("AUTORESUME_MEMORY", str(memory))
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.chdir(disk)


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["bench", "--rounds", "1", *map(str, arguments)])


def numbers(*arguments: Any) -> dict[str, Any]:
    result = invoke("--json", *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def left(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if not path.is_dir()]


def test_a_table_for_people(tmp_path: Path) -> None:
    """Each question has a row; what was written to try it is gone, from the disk and from memory."""
    result = invoke("--state", "3MB", "--nproc", 2)
    assert result.exit_code == 0, result.output
    for row in ("state", "stall", "durable", "processor", "last save", "best interval"):
        assert f" {row} " in result.output
    assert "2 ranks on this node write 3.0 MB" in result.output
    assert left(tmp_path) == []
    assert list((tmp_path / "disk").iterdir()) == []


def test_numbers_for_programs() -> None:
    """One object, in seconds and bytes; they agree with each other."""
    found = numbers("--state", "3MB", "--grace", 60, "--mtbf", "2h")
    assert (found["state_bytes"], found["tried_bytes"], found["ranks"], found["nodes"]) == (3_000_000, 3_000_000, 1, 1)
    assert found["durable_seconds"] == pytest.approx(found["copy_seconds"][0] + found["persist_seconds"][0])
    assert found["stall_seconds"] == pytest.approx(found["copy_seconds"][0])
    assert found["stall_seconds"] > 0 < found["processor_seconds"]
    assert (found["grace_seconds"], found["failure_seconds"], found["step_seconds"]) == (60, 7200, None)
    assert found["fits"] == (found["last_save_seconds"] <= 60)


def test_each_node_writes_its_share() -> None:
    """Of several nodes only this one's part is tried."""
    assert numbers("--state", "8MB", "--nodes", 4)["tried_bytes"] == 2_000_000


def test_a_run_is_the_example(tmp_path: Path) -> None:
    """Its newest checkpoint tells the size, and the ranks; another one if it is named. It stays as it is."""
    run = FakeRun(tmp_path / "gpt")
    for step in (10, 20):
        run.checkpoint(step)
    before = sorted(left(tmp_path / "gpt"))
    found = numbers(tmp_path / "gpt")
    assert found["ranks"] == 2
    files = list((tmp_path / "gpt" / "checkpoints" / "E0_U20_S640-0001").rglob("*"))
    assert found["state_bytes"] == sum(one.stat().st_size for one in files if one.suffix and one.stem != "manifest")
    assert "checkpoint E0_U10_S320-0001" in invoke(tmp_path / "gpt", "--checkpoint", 10).output
    assert sorted(left(tmp_path / "gpt")) == before


def test_the_step_of_a_run_comes_on_top(tmp_path: Path) -> None:
    """A stop comes in the middle of a step, which is finished first: a long one may not fit the grace time."""
    run = FakeRun(tmp_path / "gpt")
    run.checkpoint(10)
    (tmp_path / "gpt" / "progress.json").write_text(json.dumps({"step": 10, "step_seconds": 45.0}))
    found = numbers(tmp_path / "gpt")
    assert found["last_save_seconds"] == pytest.approx(45.0 + found["durable_seconds"])
    assert found["fits"] is False
    text = " ".join(invoke(tmp_path / "gpt").output.replace("│", " ").split())
    assert "does NOT fit into the 30 s of grace (the option grace)" in text
    assert numbers(tmp_path / "gpt", "--grace", 1000)["fits"] is True


def test_too_little_space() -> None:
    """It says how much there is and how much is needed, and tries nothing."""
    result = invoke("--state", "100000TB")
    assert isinstance(result.exception, UsageError)
    assert "100000.00 TB" in str(result.exception)
    assert "Free some, choose another folder with --run-dir, or give a smaller --state." in str(result.exception)


def test_a_save_that_fails(tmp_path: Path) -> None:
    """The first reason is told, the exit code is 1, and nothing is left behind."""

    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = warm.run(
        [sys.executable, "-m", "autoresume", "bench", "--state", "3MB", "--nproc", "2"],
        capture_output=True,
        text=True,
        preexec_fn=no_large_files,
    )
    assert done.returncode == 1
    assert "a save was tried, and failed: " in done.stderr
    assert "Traceback" not in done.stderr
    assert left(tmp_path) == []


def test_ended_in_the_middle(tmp_path: Path) -> None:
    """A SIGTERM while it writes: what it wrote is removed, and its processes end."""
    child = warm.Popen(
        [sys.executable, "-m", "autoresume", "bench", "--state", "30MB", "--rounds", "100000"], stderr=subprocess.PIPE
    )
    until(lambda: list((tmp_path / "disk").glob("*/checkpoints")))
    ranks = psutil.Process(child.pid).children()
    child.terminate()
    _, said = child.communicate(timeout=100)
    assert child.returncode == 128 + signal.SIGTERM
    assert b"Traceback" not in said
    assert list((tmp_path / "disk").iterdir()) == []
    until(lambda: not any(rank.is_running() for rank in ranks))


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 100
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --state, e.g. --state 1.5GB, or a run directory"),
        (["--checkpoint", "10"], "give the run directory that it lies in"),
        (["--state", "much"], "--state 'much': give a size"),
        (["--state", "1MB", "--mtbf", "often"], "--mtbf 'often': give a time, e.g. 30min, 4h or 2d"),
    ],
)
def test_what_is_missing_or_wrong(arguments: list[str], said: str) -> None:
    """One message that says what to give."""
    assert said in str(invoke(*arguments).exception)


TRIAL = Trial(4_000, 1_000, copy=(0.1, 0.3, 0.2), persist=(1.0, 1.2, 1.4), processor=(0.5, 0.4, 0.6))


def test_times_are_scaled_medians() -> None:
    """Of a state that is four times what was tried."""
    assert TRIAL.stall_seconds == pytest.approx(4 * 0.2)
    assert TRIAL.durable_seconds == pytest.approx(4 * 1.5)
    assert TRIAL.processor_seconds == pytest.approx(4 * 0.5)


def test_the_interval_is_the_best_one() -> None:
    """Young's and Daly's: what saves cost and what interruptions lose are balanced."""
    estimate = Estimate(TRIAL, failure_seconds=3600.0, grace_seconds=5.0, step_seconds=1.0)
    assert estimate.interval_seconds == pytest.approx(math.sqrt(2 * 0.8 * 3600.0))
    assert estimate.stall_share == pytest.approx(0.8 / estimate.interval_seconds)
    assert estimate.lost_seconds == pytest.approx(estimate.interval_seconds / 2 + 6.0)
    assert estimate.last_save_seconds == pytest.approx(7.0)
    assert estimate.fits is False


def test_saves_do_not_pile_up() -> None:
    """The interval is at least what a save takes until it is durable."""
    slow = Trial(1, 1, copy=(0.001,), persist=(500.0,), processor=(1.0,))
    assert Estimate(slow, 60.0, None, None).interval_seconds == pytest.approx(500.001)
    assert Estimate(slow, 60.0, None, None).fits is None


def test_a_profiled_training_is_traced_over_its_lives(tmp_path: Path) -> None:
    """`--profile` trains with a state of the size that is asked for, is preempted once, and leaves a trace of each life."""
    command = [sys.executable, "-m", "autoresume", "bench", "--state", "20MB", "--profile", str(tmp_path / "run")]
    environment = {**os.environ, "AUTORESUME_MEMORY": str(tmp_path)}
    done = warm.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"tensorboard --logdir {tmp_path / 'run' / 'traces'}" in done.stdout
    lives = sorted(path.name.split(".")[0] for path in (tmp_path / "run" / "traces").iterdir())
    assert lives == ["life-0001-rank-00000", "life-0002-rank-00000"]
    again = warm.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert again.returncode != 0
    assert "exists already" in again.stderr
