"""`autoresume drill --slurm`: does the script resume where the cluster itself preempts it?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.slurm_jobs.harness import SCRIPT, Job

pytestmark = pytest.mark.timeout(500)
MOMENTS = [
    {"action": "term", "at": "step", "step": 7},
    {"action": "kill", "at": "forward", "step": 30, "rank": 1},
    {"action": "kill-rank", "at": "restore", "point": "restore.read", "rank": 0},
]


def test_a_job_is_drilled(job: Job, folder: Path) -> None:
    """Two nodes, a rank each: a requeue by Slurm, all of the job on a node that is killed, and a rank that is killed while
    it restores; one job goes through all, and is identical to undisturbed ones, step by step."""
    (folder / "moments.json").write_text(json.dumps(MOMENTS))
    words = ["--slurm=--nodes=2 --nproc=1", f"--schedule={folder / 'moments.json'}", f"--output={folder / 'drill'}"]
    command = [sys.executable, "-m", "autoresume", "drill", *words, "--save-every=5", str(SCRIPT)]
    done = job.cluster.run(*command, cwd=folder, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical: 60 steps on 2 ranks with 3 interruptions" in done.stdout
    report = json.loads((folder / "drill" / "report.json").read_text())
    assert [life["came"] for life in report["lives"]] == [True, True, True, False]
    lives = [
        json.loads(path.read_text()) for path in sorted((folder / "drill/interrupted/run/incarnations").glob("*.json"))
    ]
    assert [life["ended"]["cause"] for life in lives] == ["requeued", "node failure", "killed", "finished"]
    assert len({life["job"]["id"] for life in lives}) == 1


def test_a_job_that_would_not_resume_is_not_begun(job: Job) -> None:
    """`sbatch --rehearse`: the job drills the first steps on one of its nodes, says what is wrong, and fails; no life of the
    run was begun, Slurm does not run it again, and nothing is left of the rehearsal."""
    trainer = Path(__file__).parents[1] / "drill" / "scripts" / "trainer.py"
    job.run.mkdir(parents=True, exist_ok=True)
    script = job.run.parent / "train.py"
    script.write_text(trainer.read_text().replace("MISTAKE = sys.argv[1]", 'MISTAKE = "scheduler"'))
    job.submit("--nodes=2", "--nproc=1", "--rehearse", script=script)
    assert job.until_over() == "FAILED"
    assert "run.track(scheduler=scheduler)" in job.log()
    assert "was not started" in job.log()
    assert job.field("Restarts") == "0"
    assert job.lives() == []
    assert not [path for path in job.run.parent.iterdir() if "rehearsal" in path.name]
