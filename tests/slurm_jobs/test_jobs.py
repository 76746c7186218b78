"""`autoresume sbatch` on a real cluster: whatever ends a life of a job, the run goes on as if nothing had happened."""

from __future__ import annotations

import datetime
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm_cluster.harness import wait_until
from tests.slurm_jobs.harness import Job, assert_same, of_job

pytestmark = pytest.mark.timeout(500)
TWO = ("--nodes=2", "--nproc=1")


def test_preempted_by_a_higher_partition(job: Job, calm: Callable[[int], Path]) -> None:
    """Two nodes with two ranks each: the grace time is enough for a checkpoint at the very step; then Slurm runs the
    job again, and all losses and the final state are those of an undisturbed run."""
    job.submit("--nodes=2", "--nproc=2").until_held()
    job.preempt()
    job.until_finished()
    assert job.causes() == ["preempted", "finished"]
    first, second = job.lives()
    assert first["ended"]["step"] == second["began"]["step"], "no step was lost"
    assert job.field("Restarts") == "1"
    assert_same(job.run, calm(4))


def test_requeued_by_hand(job: Job, calm: Callable[[int], Path]) -> None:
    """scontrol requeue gives KillWait seconds: they are used, and the job is not requeued a second time."""
    job.submit(*TWO).until_held()
    assert f"job {job.id} is requeued" in job.cli("requeue", str(job.run))
    job.until_finished()
    assert job.causes() == ["requeued", "finished"]
    assert job.field("Restarts") == "1"
    assert_same(job.run, calm(2))


def test_a_killed_rank(job: Job, calm: Callable[[int], Path]) -> None:
    """A rank that is killed on one node is started again in the same job, with all others, from the last checkpoint."""
    job.submit(*TWO, cold=True, ACCIDENT="kill").until_finished()
    assert job.causes() == ["killed", "finished"]
    first, second = job.lives()
    assert job.until_over() == "COMPLETED"
    assert (first["ended"]["node"], second["began"]["step"]) == (job.nodes()[-1], 10)
    assert job.field("Restarts") == "0"
    assert_same(job.run, calm(2))


def test_a_hanging_rank(job: Job, calm: Callable[[int], Path]) -> None:
    """A rank that makes no step is noticed; the stacks of all ranks show where it is; then they start again."""
    job.submit(*TWO, ACCIDENT="hang", HANG="5").until_finished()
    assert job.causes() == ["hang", "finished"]
    stacks = {path.name: path.read_text() for path in (job.run / "stacks").iterdir()}
    assert sorted(stacks) == ["0001-rank-00000.txt", "0001-rank-00001.txt"]
    assert "in disturb" in stacks["0001-rank-00001.txt"]
    assert_same(job.run, calm(2))


def test_a_python_error_that_comes_again(job: Job) -> None:
    """The same error at the same step twice: a third life would not mend it. The reason is told, with the traceback."""
    job.submit(*TWO, ACCIDENT="error")
    assert job.until_over() == "FAILED"
    assert job.causes() == ["error", "error"]
    last = job.lives()[-1]["ended"]
    assert "the same error came twice at step 12" in last["then"]
    assert "in main" in last["traceback"]
    assert "the loss is nan at step 12" in job.cli("status", str(job.run))


def test_cancelled_by_its_user(job: Job) -> None:
    """scancel leaves KillWait seconds, enough for a checkpoint; nobody requeues the job."""
    job.submit(*TWO).until_held()
    job.cli("cancel", str(job.run))
    assert job.until_over() == "CANCELLED"
    assert job.field("Restarts") == "0"
    (life,) = job.lives()
    assert life["ended"]["cause"] == "cancelled"
    assert (
        max(int(path.name.split("_")[1][1:]) for path in (job.run / "checkpoints").iterdir()) == life["ended"]["step"]
    )


def test_asked_to_stop(job: Job) -> None:
    """autoresume stop saves, leaves and requeues nothing; the same submission goes on later."""
    job.submit(*TWO).until_held()
    job.cli("stop", str(job.run))
    job.until_over()
    assert job.causes() == ["stopped"]
    assert job.field("Restarts") == "0"
    again = Job(job.cluster, job.run).submit(*TWO)
    again.until_finished()
    assert again.lives()[1]["began"]["step"] == again.lives()[0]["ended"]["step"]
    again.close()


def test_out_of_time(job: Job, calm: Callable[[int], Path]) -> None:
    """The daemon sees that the limit was moved, stops in time by itself, without any --signal, and requeues."""
    job.submit(*TWO, "--time=5").until_held()
    end = datetime.datetime.now() + datetime.timedelta(seconds=45)
    job.cluster.answer("scontrol", "update", f"job={job.id}", f"EndTime={end.isoformat(timespec='seconds')}")
    wait_until(lambda: job.causes() == ["time limit"], 120, job.log)
    # Slurm made the limit of each life of it: on a busy machine the next one would not begin to train within that.
    job.cluster.answer("scontrol", "update", f"job={job.id}", "TimeLimit=5")
    job.until_finished()
    assert job.causes() == ["time limit", "finished"]
    first, second = job.lives()
    assert first["ended"]["step"] == second["began"]["step"], "no step was lost"
    assert "DUE TO TIME LIMIT" not in job.log()
    assert_same(job.run, calm(2))


def test_a_lost_node(job: Job, calm: Callable[[int], Path]) -> None:
    """A node that dies with all its processes: the run goes on from the last checkpoint."""
    job.submit(*TWO).until_held()
    lost = job.nodes()[1]
    try:
        job.kill_node(lost)
        job.until_finished()
    finally:
        assert job.cluster("up").returncode == 0
    assert job.causes() == ["node failure", "finished"]
    assert lost not in job.nodes()
    assert_same(job.run, calm(2))


def test_slurmctld_is_away_while_the_job_is_preempted_and_after(job: Job, calm: Callable[[int], Path]) -> None:
    """The controller is killed and comes back: nothing is lost, and the next preemption is answered as ever."""
    job.submit(*TWO).until_held()
    job.until_saved()
    os.kill(job.cluster.pid("slurmctld"), signal.SIGKILL)
    wait_until(lambda: job.cluster("status").returncode == 1, 10, lambda: "status says all is up")
    assert job.cluster("up").returncode == 0
    wait_until(lambda: job.state() == "RUNNING", 60, job.describe)
    job.preempt()
    job.until_finished()
    assert job.causes() == ["preempted", "finished"]
    assert_same(job.run, calm(2))


def test_a_daemon_that_is_killed_itself(job: Job, calm: Callable[[int], Path]) -> None:
    """With node 0's daemon all is gone that could decide: the batch script has the job requeued, five times at most."""
    job.submit().until_held()
    (daemon,) = [process for process in of_job(job.id) if process.cmdline()[1:4] == ["-m", "autoresume", "node"]]
    daemon.kill()
    job.until_finished()
    assert job.hows() == ["died", "finished"]
    assert job.field("Restarts") == "1"
    assert_same(job.run, calm(1))
