"""Slurm's variables as one value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresume.slurm import environment
from autoresume.slurm.environment import Task

BATCH = {
    "SLURM_JOB_ID": "71",
    "SLURM_JOB_PARTITION": "low",
    "SLURM_NTASKS": "4",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURMD_NODENAME": "node1",
}
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_PROCID": "3", "SLURM_NODEID": "1", "SLURM_LOCALID": "1", "SLURMD_NODENAME": "node2"}  # fmt: skip


def read(variables: dict[str, str]) -> Task:
    task = environment.read(variables)
    assert task is not None
    return task


def test_outside_of_slurm_there_is_no_task() -> None:
    """Nor in a shell that has leftovers of a job, but no job."""
    assert environment.read({}) is None
    assert environment.read({"SLURM_JOB_ID": "", "SLURM_PROCID": "0"}) is None


def test_a_task_of_a_step() -> None:
    """Rank, place on its node, node."""
    task = read(STEP)
    assert (task.rank, task.tasks, task.local_rank, task.local_tasks) == (3, 4, 1, 2)
    assert (task.node, task.partition, task.in_step) == ("node2", "low", True)
    assert repr(task) == "Slurm job 71, life 0, task 3 of 4 on node2"


def test_the_batch_script_is_no_task() -> None:
    """Slurm gives it a SLURM_PROCID as well, and the number of tasks of the job: it is one process all the same."""
    task = read(BATCH)
    assert (task.rank, task.tasks, task.local_tasks, task.in_step) == (0, 1, 1, False)
    assert repr(task) == "Slurm job 71, life 0, batch script on node1"


@pytest.mark.parametrize(("count", "restart"), [(None, 0), ("0", 0), ("1", 1), ("12", 12)])
def test_the_first_life_has_no_restart_count(count: str | None, restart: int) -> None:
    """Slurm leaves the variable out, and each life has a name of its own."""
    task = read({**STEP, **({} if count is None else {"SLURM_RESTART_COUNT": count})})
    assert (task.restart, task.life) == (restart, f"71-{restart}")


def test_an_arrays_task_is_spelled_by_its_own_number() -> None:
    """The last task's job has the array's own number: a requeue of that would be one of them all."""
    array = {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "2"}
    assert read(STEP).spelled == "71"
    assert read({**STEP, **array}).spelled == "71_2"
    assert read({**STEP, **array, "SLURM_JOB_ID": "73"}).spelled == "71_2"
    assert read({**STEP, **array, "SLURM_JOB_ID": "73"}).life == "73-0"


@pytest.mark.parametrize(("said", "end"), [(None, None), ("1800000000", 1.8e9), ("0", None), ("UNLIMITED", None)])
def test_the_end_of_the_job_where_slurm_names_it(said: str | None, end: float | None) -> None:
    """In a container without Slurm's commands it is all that is known of the time limit."""
    assert read({**STEP, **({} if said is None else {"SLURM_JOB_END_TIME": said})}).end == end


@pytest.mark.parametrize(
    ("text", "counts"),
    [("1", [1]), ("2(x3),1", [2, 2, 2, 1]), ("4,2(x2),1(x2)", [4, 2, 2, 1, 1]), ("3,3,1", [3, 3, 1]), ("", [1])],
)
def test_tasks_of_each_node(text: str, counts: list[int]) -> None:
    """From Slurm's short way to write them."""
    step = {**STEP, "SLURM_STEP_TASKS_PER_NODE": text, "SLURM_TASKS_PER_NODE": text}
    assert [read({**step, "SLURM_NODEID": str(node)}).local_tasks for node in range(len(counts))] == counts


@given(st.lists(st.integers(1, 64), min_size=1, max_size=20))
def test_any_layout_of_tasks(counts: list[int]) -> None:
    """Written as Slurm writes it, runs of the same number together."""
    runs = list[list[int]]()
    for count in counts:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    text = ",".join(f"{count}(x{times})" if times > 1 else f"{count}" for count, times in runs)
    step = {**STEP, "SLURM_STEP_TASKS_PER_NODE": text}
    assert [read({**step, "SLURM_NODEID": str(node)}).local_tasks for node in range(len(counts))] == counts
