"""The demo's own promises; that both runs are the same is what the demo itself shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from demo import picture, training
from demo.training import Failed, Training

ROOT = Path(__file__).parents[2]
STUB = [sys.executable, "-m", "tests.demo.stub"]
DRIVER = "from demo import demo, training; training.RUN = {}; demo._import_seconds = lambda: 1.0; demo.main()"


def start(folder: Path, stub: str) -> subprocess.Popen[str]:
    """The demo, with a stub for `autoresume run`."""
    environment = {**os.environ, "DEMO_FOLDER": str(folder / "demo"), "STUB": stub, "STUB_FOLDER": str(folder)}
    command = [sys.executable, "-c", DRIVER.format(STUB)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def left_running(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("STUB_FOLDER") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Training]:
    monkeypatch.setattr(training, "RUN", STUB)
    monkeypatch.setenv("STUB", "trains")
    monkeypatch.setenv("STUB_FOLDER", str(tmp_path))
    made = Training(tmp_path / "run", tmp_path, Console())
    made.plan("seven", 7, rank=1)
    made.plan("nine", 9, rank=1)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


def test_an_interruption_comes_at_its_step(stubbed: Training, tmp_path: Path) -> None:
    """Not one step later, however fast the training is: it waits there until the signal was sent."""
    stubbed.start()
    assert stubbed.interrupt("seven", lambda pid: os.kill(pid, signal.SIGKILL)) == 7
    stubbed.end([-signal.SIGKILL])
    assert (tmp_path / "steps").read_text().split() == [str(step) for step in range(7)]


def test_each_interruption_comes_once(stubbed: Training, tmp_path: Path) -> None:
    """A later life, which comes to the same step again, does not wait for what has been."""
    stubbed.start()
    assert stubbed.interrupt("seven", lambda pid: None) == 7
    assert stubbed.interrupt("nine", lambda pid: os.kill(pid, signal.SIGKILL)) == 9
    stubbed.end([-signal.SIGKILL])
    stubbed.start()
    stubbed.end()
    assert len((tmp_path / "steps").read_text().split()) == 9 + 20


def test_it_waits_until_the_signal_was_heard(stubbed: Training, tmp_path: Path) -> None:
    """A fast training could else be at its end before the daemon has looked."""
    steps = tmp_path / "steps"
    looks = iter([False] * 10)
    stubbed.start()
    stubbed.interrupt("seven", lambda pid: None, lambda: len(steps.read_text().split()) != 7 or next(looks, True))
    assert len(steps.read_text().split()) == 7
    stubbed.hold("nine", lambda: len(steps.read_text().split()) == 9)
    stubbed.end()
    assert len(steps.read_text().split()) == 20


def test_a_training_that_ends_too_early(stubbed: Training) -> None:
    """What was to be interrupted, and ended before: said in one line, with the log."""
    stubbed.start()
    stubbed.plan("fifty", 50, rank=1)
    stubbed.hold("seven", lambda: True)
    stubbed.hold("nine", lambda: True)
    with pytest.raises(Failed, match=rf"exit code 0 before it was fifty; .*{stubbed.log}"):
        stubbed.interrupt("fifty", lambda pid: None)


def test_a_failure_is_one_line(tmp_path: Path) -> None:
    """What went wrong, the log and its last line; no traceback, an exit code that tells, and nothing left behind."""
    demo = start(tmp_path, "fails")
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1, said
    log = tmp_path / "demo" / "uninterrupted.log"
    last = said.splitlines()[-1]
    assert (
        last == f"demo: the training ended with exit code 3; read its log {log}, which ends with: the disk is on fire"
    )
    assert "Traceback" not in said
    assert not left_running(tmp_path)
    assert not Path((tmp_path / "memory").read_text()).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """Whoever stops the demo is left with no process of it, not even one that had gone its own ways, and no file in
    memory."""
    demo = start(tmp_path, "stays")
    while not (tmp_path / "there").exists():
        assert demo.poll() is None
        time.sleep(0.01)
    demo.send_signal(number)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 128 + number
    assert said.splitlines()[-1] == f"demo: stopped by {number.name}; nothing is left running"
    assert "Traceback" not in said
    assert not left_running(tmp_path)
    assert not Path((tmp_path / "memory").read_text()).exists()


def test_what_is_not_the_demos_stays(tmp_path: Path) -> None:
    """Its folder is emptied of what an earlier demo made, and of nothing else."""
    folder = tmp_path / "demo"
    (folder / "interrupted").mkdir(parents=True)
    (folder / "thesis.tex").touch()
    demo = start(tmp_path, "fails")
    demo.communicate(timeout=60)
    assert (folder / "thesis.tex").exists()
    assert not (folder / "interrupted").exists()


def test_the_picture(tmp_path: Path) -> None:
    """Both curves and all lives, also where there were more of them than usual."""
    records = [{"step": step, "values": {"loss": 5 / step}} for step in range(1, 61)]
    lives = [
        {
            "incarnation": number + 1,
            "began_at_step": 8 * number,
            "ended_at_step": 8 * number + 11,
            "steps_lost": 3,
        }
        for number in range(6)
    ]
    lives.append({"incarnation": 7, "began_at_step": 48, "ended_at_step": 60, "steps_lost": None})
    picture.draw(tmp_path / "curves.png", records, records, lives, ["killed"] * 7)
    content = (tmp_path / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000
