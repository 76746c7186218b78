"""Sites differ: arrays, denied requeues, containers, exit codes, signals, ordinary users, no daemon at all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.slurm_cluster.harness import Cluster, wait_until
from tests.slurm_jobs.harness import SCRIPT, Job, assert_same

pytestmark = pytest.mark.timeout(500)


def test_an_array_with_one_task_preempted(job: Job, calm: Callable[[int], Path]) -> None:
    """Of three tasks the preempted one alone is requeued; each has a run of its own."""
    job.submit("--array=0-2", "--exclusive")
    tasks = [Job(job.cluster, job.run / f"task-{number}", f"{job.id}_{number}") for number in range(3)]
    for task in tasks:
        task.until_held()
    tasks[2].preempt(f"--nodelist={tasks[2].field('NodeList')}")
    tasks[2].until_life(2)
    for task in tasks[:2]:
        (task.run / "go").touch()
    for task in tasks:
        task.until_finished()
        assert_same(task.run, calm(1))
    assert [task.field("Restarts") for task in tasks] == ["0", "0", "1"]
    assert tasks[2].causes() == ["preempted", "finished"]


def test_a_container_without_scontrol(job: Job, calm: Callable[[int], Path]) -> None:
    """Where the daemon can't reach Slurm, the batch script outside of the container carries out its decision."""
    job.submit(f"--container=env PATH={Path(sys.executable).parent}").until_held()
    job.preempt()
    job.until_finished()
    assert job.hows() == ["interrupted", "finished"]
    assert "the batch script tries it" in job.log()
    assert job.field("Restarts") == "1"
    assert_same(job.run, calm(1))


def test_a_site_that_requeues_nothing(job: Job, calm: Callable[[int], Path]) -> None:
    """With --successor a job that waits for this one goes on; after the end of the run none is left waiting."""
    job.submit("--successor").until_held()
    job.preempt()
    job.until_finished()
    first, second = job.lives()
    assert first["job"]["id"] == job.id != second["job"]["id"]
    assert job.field("Restarts") == "0"
    waiting = lambda: job.cluster.answer("squeue", "--noheader", "--all", "--format=%i %T", "--name=train")  # noqa: E731
    wait_until(lambda: not waiting().strip(), 60, waiting)
    assert_same(job.run, calm(1))


def test_an_exit_code_that_requeues_and_a_signal_of_ones_own(
    other_cluster: Cluster, folder: Path, calm: Callable[[int], Path]
) -> None:
    """Under preempt_send_user_signal the job's own signal announces the preemption, to the steps or to the batch script
    alone; RequeueExit asks for the requeue.

    Then a preemption without any grace: KillWait is enough, and Slurm requeues by itself.
    """
    job = Job(other_cluster, folder / "run")
    try:
        job.submit("--signal=USR1@60").until_held()
        job.preempt("--nodes=2")
        job.until_life(2)
        assert job.causes()[0] == "preempted"
        assert "exit code 85 asks Slurm for it" in job.log()
        assert "SIGUSR1 received" in job.log(), job.log()
        job.until_finished()
        assert_same(job.run, calm(1))

        batch = Job(other_cluster, folder / "batch").submit("--signal=B:USR1@60").until_held()
        batch.preempt("--nodes=2")
        batch.until_finished()
        assert batch.causes() == ["preempted", "finished"]
        assert_same(batch.run, calm(1))

        other_cluster.answer("scontrol", "update", "partition=low", "GraceTime=0")
        hasty = Job(other_cluster, folder / "hasty").submit().until_held()
        hasty.preempt("--nodes=2")
        hasty.until_finished()
        assert [hasty.hows(), hasty.field("Restarts")] == [["interrupted", "finished"], "1"]
        first, second = hasty.lives()
        assert first["ended"]["step"] == second["began"]["step"], "no step was lost"
        assert_same(hasty.run, calm(1))
    finally:
        job.close()


def test_an_ordinary_user(job: Job, calm: Callable[[int], Path], ordinary: tuple[str, ...], folder: Path) -> None:
    """Nothing needs root: submission, preemption, requeue and the end; the files are the user's alone."""
    job.prefix = ordinary
    job.submit(script=folder / "checkout" / SCRIPT.relative_to(SCRIPT.parents[2])).until_held()
    job.preempt()
    job.until_finished()
    assert job.causes() == ["preempted", "finished"]
    assert {path.owner() for path in job.run.rglob("*")} == {"nobody"}
    assert_same(job.run, calm(1))


def test_ranks_that_srun_starts_by_itself(job: Job, calm: Callable[[int], Path], folder: Path) -> None:
    """`srun python train.py`, a task for each rank, no torchrun, no daemon: the same, as far as it can be."""
    script = f"srun {sys.executable} {SCRIPT}"
    os.environ.update(HOLD="12", AUTORESUME_RUN_DIR=str(job.run), OMP_NUM_THREADS="1")
    try:
        job.cluster.environment |= {"HOLD": "12", "AUTORESUME_RUN_DIR": str(job.run), "OMP_NUM_THREADS": "1"}
        job.id = job.cluster.sbatch("--nodes=2", "--ntasks-per-node=1", script=script, cwd=folder)
    finally:
        for name in ("HOLD", "AUTORESUME_RUN_DIR", "OMP_NUM_THREADS"):
            job.cluster.environment.pop(name, None)
            os.environ.pop(name, None)
    job.until_held()
    job.preempt()
    job.until_finished()
    assert job.causes()[0] == "preempted"
    assert_same(job.run, calm(2))


def test_a_node_that_comes_back_from_the_dead(job: Job, calm: Callable[[int], Path]) -> None:
    """A node that was cut off lives on beside the job's second life: when it wakes it writes nothing, and ends."""
    job.submit("--nodes=2", "--nproc=1").until_held()
    lost = job.nodes()[1]
    revenants = job.processes(lost)
    assert len(revenants) >= 3
    try:
        os.kill(job.cluster.pid(f"slurmd-{lost}"), signal.SIGKILL)
        for process in revenants:
            process.suspend()
        job.until_life(2)
        for process in revenants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        wait_until(lambda: not any(map(lives, revenants)), 60, lambda: f"{[one.cmdline() for one in revenants]} live")
        job.until_finished()
    finally:
        for process in revenants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert job.cluster("up").returncode == 0
    assert job.causes()[-1] == "finished"
    assert_same(job.run, calm(2))


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_a_spare_node_takes_over(job: Job, calm: Callable[[int], Path]) -> None:
    """With --spares a lost node costs no requeue: another node of the job takes its place."""
    job.submit("--nodes=3", "--nproc=1", "--spares=1").until_held()
    first, second, spare = job.nodes()
    assert [len(job.ranks(node)) for node in (first, second, spare)] == [1, 1, 0]
    try:
        job.kill_node(second)
        job.until_finished()
    finally:
        assert job.cluster("up").returncode == 0
    assert job.causes() == ["node failure", "finished"]
    assert job.field("Restarts") == "0"
    assert_same(job.run, calm(2))


def test_the_doctors_canary(job: Job) -> None:
    """A job of a minute shows that the signal reaches every rank, what a save takes, and that it is run again."""
    said = job.cli(
        "doctor", "--json", "--canary", "--nodes=2", f"--run-dir={job.run}", "--state-size=20MB", check=False
    )
    findings = {one["name"]: one for one in map(json.loads, said.splitlines())}
    assert findings["canary: signal"]["found"] == "SIGTERM stopped 2 ranks at one step"
    assert findings["canary: save"]["verdict"] == "pass"
    assert findings["canary: requeue"]["found"].endswith("from the very step")
    assert list(job.run.glob("canary-*")) == []
