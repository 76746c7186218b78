"""`--rehearse`: a run that would not resume rightly is not begun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autoresume.cli.sbatch import Submission
from autoresume.config.options import load_options
from autoresume.errors import UsageError
from tests import warm
from tests.real_scripts import harness

TRAINER = str(Path(__file__).parents[1] / "drill" / "scripts" / "trainer.py")
SEEDS_ONLY_TORCH = """
import torch
from autoresume import Run, autoresume

@autoresume
def main(run: Run):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.track(model=model, optimizer=optimizer)
    for step in run.steps(6):
        optimizer.zero_grad()
        model(torch.rand(4, 2)).mean().backward()
        optimizer.step()

main()
"""


def run(folder: Path, *words: str, cold: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoresume", "run", *words]
    start = subprocess.run if cold else warm.run
    environment = harness.environment(**variables)
    return start(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_run_that_would_not_resume_is_refused(tmp_path: Path) -> None:
    """Exit code 1, the cause and the line to write; nothing of it is there, nor of the rehearsal."""
    done = run(tmp_path, "--rehearse", TRAINER, "scheduler")
    assert done.returncode == 1, done.stderr
    assert "run.track(scheduler=scheduler)" in done.stderr
    assert "trainer.py was not started" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_one_that_resumes_is_begun(tmp_path: Path) -> None:
    """It is said that it was tried, and the training begins; one that has a checkpoint goes on, and is not rehearsed. The
    option does the same as the word. A script that seeds torch alone is deterministic: it draws from nothing else."""
    (tmp_path / "train.py").write_text(SEEDS_ONLY_TORCH)
    done = run(tmp_path, "train.py", AUTORESUME_REHEARSE="1", cold=True)  # what is forked has drawn from nothing
    assert done.returncode == 0, done.stderr
    assert "rehearsal: identical: 6 steps" in done.stderr
    assert "incarnation 1: starts from scratch" in done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train"]
    again = run(tmp_path, "--rehearse", "train.py")
    assert "has a checkpoint, and goes on from it: nothing is rehearsed" in again.stderr


def test_a_job_rehearses_on_one_of_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the daemons are started, and the job ends where that is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    lines = Submission.of(["--nodes=2", "--nproc=4", "--rehearse", "train.py", "--lr", "1"]).text().splitlines()
    (drilled,) = [index for index, line in enumerate(lines) if " rehearse " in line]
    (started,) = [index for index, line in enumerate(lines) if " node " in line and line.startswith("srun")]
    assert lines[drilled].startswith("srun --nodes=1 --ntasks=1 ")
    assert lines[drilled].endswith(" rehearse --nproc=4 train.py --lr 1 || exit 1")
    assert drilled < started


def test_the_decorator_is_too_late() -> None:
    """It is said where the option belongs."""
    with pytest.raises(UsageError, match="--rehearse"):
        load_options({"rehearse": True})
    assert load_options({}, {"AUTORESUME_REHEARSE": "yes"}).rehearse
    with pytest.raises(UsageError, match="rehearse='maybe'"):
        load_options({}, {"AUTORESUME_REHEARSE": "maybe"})
