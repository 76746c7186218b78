"""`autoresume drill` as it is typed: real lives under the daemon and torchrun, its files, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import warm
from tests.real_scripts import harness

TRAINER = Path(__file__).parent / "scripts" / "trainer.py"


def drill(folder: Path, *words: str, cold: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoresume", "drill", *words]
    run = subprocess.run if cold else warm.run
    return run(command, cwd=folder, env=harness.environment(), capture_output=True, text=True, timeout=300, check=False)


def test_two_ranks_under_the_daemon(tmp_path: Path) -> None:
    """A signal, a kill of everything in a step, and one of the daemon: identical on both ranks. The report tells of each
    life, and is there for people, for programs and for CI; the schedule can be replayed."""
    moments = [
        {"action": "usr1", "at": "step", "step": 3},
        {"action": "kill", "at": "forward", "step": 6, "rank": 1},
        {"action": "kill-daemon", "at": "step", "step": 9},
    ]
    (tmp_path / "moments.json").write_text(json.dumps(moments))
    words = ["--ranks", "2", "--schedule", "moments.json", "--save-every", "1", "--junit", "junit.xml"]
    done = drill(tmp_path, *words, str(TRAINER), "ranks", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical: 30 steps on 2 ranks with 3 interruptions" in done.stdout
    assert "kill of the daemon after step 9" in done.stdout
    folder = tmp_path / "drills" / "trainer"
    report = json.loads((folder / "report.json").read_text())
    assert [life["came"] for life in report["lives"]] == [True] * 3 + [False]
    assert report["lost_by_plain_restarts"] > report["lost_steps"] >= 0
    assert report["save_seconds"] < 30
    assert json.loads((folder / "schedule.json").read_text())[1]["rank"] == 1
    assert (folder / "trajectory.png").read_bytes().startswith(b"\x89PNG")
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")
    records = [
        json.loads(line) for line in (folder / "undisturbed/records/rank-1.jsonl").read_text().split("\n") if line
    ]
    assert {line["kind"] for line in records} == {"begin", "step"}


def test_another_number_of_ranks_in_each_life(tmp_path: Path) -> None:
    """The data are the same, each sample once in each epoch, however many ranks there are; what is restored is what was
    saved."""
    moments = [{"action": "term", "at": "step", "step": 2}, {"action": "kill", "at": "step", "step": 6}]
    (tmp_path / "moments.json").write_text(json.dumps(moments))
    words = ["--world-size", "2,1", "--schedule", "moments.json", "--save-every", "1"]
    done = drill(tmp_path, *words, str(TRAINER), "ranks", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same data: with 2, 1, 1 ranks in its lives each epoch saw the samples" in done.stdout


def test_a_script_that_depends_on_hash_order(tmp_path: Path) -> None:
    """Exit code 2, the likely cause, and a failure in the JUnit report. Only the first steps of it were drilled."""
    words = ["--max-steps", "4", "--output", "here", "--junit", "junit.xml", str(TRAINER), "set-order"]
    done = drill(tmp_path, *words, cold=True)  # what is forked from one process has one order
    assert done.returncode == 2, done.stdout + done.stderr
    assert "likely cause: hash order" in done.stdout
    assert "sorted(names)" in done.stdout
    assert (tmp_path / "here/trajectory.png").exists()
    failure = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testcase/failure")
    assert failure is not None
    assert failure.get("type") == "not deterministic"


def test_a_long_training_is_drilled_for_some_time(tmp_path: Path) -> None:
    """The undisturbed run is stopped after that time of training; the others end at the same step. Exit code 1 and the
    cause for a mistake, as JSON too."""
    (tmp_path / "kill.json").write_text('[{"action": "kill-rank", "at": "step", "step": 4}]')
    words = ["--max-seconds", "1.5", "--schedule", "kill.json", "--json", "--save-every", "1"]
    done = drill(tmp_path, *words, str(TRAINER), "scheduler", "1000")
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["steps"] < 6000
    assert report["cause"]["name"] == "scheduler not tracked"


def test_without_a_resume_nothing_is_shown(tmp_path: Path) -> None:
    """A run that is killed before it has saved anything begins anew: exit code 3, and no word of identity."""
    (tmp_path / "early.json").write_text('[{"action": "kill", "at": "step", "step": 2}]')
    done = drill(tmp_path, "--schedule", "early.json", "--save-every", "100", str(TRAINER), "none", "1")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "inconclusive: no life trained on from a checkpoint" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py"], "no script"),
        (["--kills", "0", str(TRAINER)], "from 1 on"),
        (["--max-steps", "1", str(TRAINER)], "at least 2 steps"),
        (["--world-size", "2,none", str(TRAINER)], "numbers of ranks"),
        (["--world-size", "2,1", "--max-steps", "5", str(TRAINER)], "whole epochs"),
        (["--schedule", "nowhere.json", str(TRAINER)], "No such file"),
        (["--output", "taken", str(TRAINER)], "would replace"),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], said: str) -> None:
    """A clear word, no traceback, and nothing of the user's is replaced."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("precious")
    done = drill(tmp_path, *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "taken" / "mine.txt").read_text() == "precious"


def test_a_script_that_fails_by_itself(tmp_path: Path) -> None:
    """What it said is shown: nothing can be drilled."""
    script = tmp_path / "broken.py"
    script.write_text("raise RuntimeError('no data here')\n")
    done = drill(tmp_path, str(script))
    assert done.returncode == 1
    assert "no data here" in done.stderr
    assert "nobody had interrupted it" in done.stderr
    idle = tmp_path / "idle.py"
    idle.write_text("print('nothing to do')\n")
    done = drill(tmp_path, str(idle))
    assert done.returncode == 1
    assert "made no step" in done.stderr
