"""save_every="auto" in real lives: what the interval follows from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

DIES = """
import os, signal, time
import autoresume
run = autoresume.start()
run.restore()
alive = run.directory / "incarnations" / "0001.alive"
for step in run.steps(2):
    if run.incarnation == 1:
        while not alive.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
print(run.life.resources.cadence.failure_seconds)
run.finish()
"""

SLOW_DISK = """
import threading
import autoresume
from autoresume.base import failpoints
from autoresume.run import cadence
cadence.FIRST_SECONDS = cadence.LEAST_SECONDS = 0.0
written = threading.Event()
failpoints.set_observer(lambda name: written.wait() if name == "persist.part_written" else None)
run = autoresume.start()
run.restore()
saves = set()
for step in run.steps(10**9):
    saves.add(run.life.saves.saved_step)
    if step == 50:
        print(len(saves - {None}), run.life.resources.cadence.durable_seconds)
        written.set()
    if len(saves - {None}) > 2:
        break
print(run.life.resources.cadence.interval_seconds >= 4 * run.life.resources.cadence.durable_seconds > 0)
run.close("ended", "enough was seen")
"""


def train(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "train.py").write_text(script)
    environment = {**os.environ, "AUTORESUME_RUN_DIR": str(folder / "run"), "AUTORESUME_MEMORY": str(folder)}
    return warm.run([sys.executable, "train.py"], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_lives_before_decide_how_often_is_saved(tmp_path: Path) -> None:
    """A life that was killed counts from its beginning to its last sign of life, and as a failure."""
    assert train(DIES, tmp_path).returncode == -9
    incarnations = tmp_path / "run" / "incarnations"
    last_sign = float((incarnations / "0001.alive").read_text())
    began = json.loads((incarnations / "0001.json").read_text())["began"]["time"]
    second = train(DIES, tmp_path)
    assert second.returncode == 0, second.stderr
    assert float(second.stdout) == pytest.approx((4 * 3600 + last_sign - began) / 2)
    assert json.loads((incarnations / "0001.json").read_text())["ended"]["time"] == last_sign
    progress = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert progress["failure_seconds"] == float(second.stdout)


def test_a_save_waits_for_the_last_one_to_be_durable(tmp_path: Path) -> None:
    """However short the interval would be: one save at a time, and the time that it took counts."""
    ended = train(SLOW_DISK, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["1", "None", "True"]
