"""A life that was started with other code than the one before."""

import subprocess
import sys
from pathlib import Path

from tests import warm

SCRIPT = """
import os, signal
from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    for step in run.steps(6):
        if step == 2 and run.incarnation == 1:
            os.kill(os.getpid(), signal.SIGTERM)


main()
"""


def train(folder: Path) -> subprocess.CompletedProcess[str]:
    return warm.run([sys.executable, "train.py"], cwd=folder, capture_output=True, text=True, timeout=100)


def test_another_script_than_in_the_last_life_is_told(tmp_path: Path) -> None:
    """Whoever edits a script between a preemption and the next life finds it said where the run goes on."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    assert train(tmp_path).returncode == 75
    script.write_text(SCRIPT.replace("run.steps(6)", "run.steps(7)"))
    second = train(tmp_path)
    assert second.returncode == 0, second.stderr
    assert "the code is another one than in life 1: the script has changed" in second.stderr


def test_the_same_code_is_not(tmp_path: Path) -> None:
    """Nothing is said where nothing has changed."""
    (tmp_path / "train.py").write_text(SCRIPT)
    assert train(tmp_path).returncode == 75
    assert "the code is another one" not in train(tmp_path).stderr
