"""What Slurm says of a job, and what it means: real lines (recorded/*.txt), and a row for each that was measured."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresume.slurm import job
from autoresume.slurm.job import JobView, Situation

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.txt"))
JUDGED = [path for path in RECORDED if "\n= " in path.read_text()]


def views(name: str) -> list[JobView]:
    return job.parse((Path(__file__).parent / "recorded" / f"{name}.txt").read_text())


@pytest.fixture
def utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    os.environ.pop("TZ")
    os.environ.update({} if before is None else {"TZ": before})
    time.tzset()


# -- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", JUDGED, ids=lambda path: path.stem)
def test_what_was_recorded_is_understood(path: Path) -> None:
    """Seen by the job's first life, the line means what the file says."""
    words, verdict, *_ = path.read_text().splitlines()
    assert words.startswith("# ")
    (view,) = job.parse(path.read_text())
    asked = "may be requeued" if job.may_requeue(view, 0) else "must not be requeued"
    assert f"= {job.situation_of(view, 0).name}, {asked}" == verdict


def test_every_field_of_a_line(utc: None) -> None:
    """The fields that are used, from a real line; times are Slurm's local ones."""
    (view,) = views("5.1-preempted-in-its-grace-time")
    assert (view.state, view.reason, view.restarts, view.requeue) == ("RUNNING", "None", 0, True)
    assert (view.partition, view.nodes, view.excluded, view.array) == ("low", "node[1-2]", "", None)
    assert view.preempt_time is not None
    assert view.end_time == view.preempt_time + 8
    assert datetime.datetime.fromtimestamp(view.preempt_time, datetime.timezone.utc).year == 2026


def test_a_name_that_looks_like_slurms_words() -> None:
    """Neither the name nor the comment of a job is taken for what Slurm says of it."""
    (view,) = views("5.0-running-odd-name")
    assert (view.name, view.state, view.reason) == ("my job State=x JobState=FAILED", "RUNNING", "None")


def test_arrays() -> None:
    """Each task is spelled by the array's number and its own, also the last one, whose job has the array's number."""
    last, first = views("array")
    assert last.id == last.spelled.partition("_")[0]
    assert [last.spelled, first.spelled] == [f"{last.id}_7", f"{last.id}_3"]
    assert [view.spelled for view in views("array-first")] == [f"{last.id}_3"]


def test_an_array_that_waits_is_one_job() -> None:
    """Tasks that have not been started have one line together, which is not that of a task."""
    (view,) = views("array-waiting")
    assert (view.array, view.spelled, view.state) == (None, view.id, "PENDING")


@pytest.mark.parametrize(
    "text", ["", "slurm_load_jobs error: Invalid job id specified\n", "No jobs in the system\n", "\n\n"]
)
def test_other_words_are_no_job(text: str) -> None:
    """Nothing is made up."""
    assert job.parse(text) == []


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=60)
)
def test_any_name_at_all(name: str) -> None:
    """Whatever its user called it (but for Slurm's next field), the state is read right."""
    if " UserId=" in f" {name} ":
        return
    (path,) = (path for path in RECORDED if path.stem == "5.6-cancelled")
    line = next(line for line in path.read_text().splitlines() if line.startswith("JobId="))
    (view,) = job.parse(line.replace("JobName=work.sh", f"JobName={name}"))
    assert (view.state, view.name.strip()) == ("COMPLETING", name.strip())


# -- meaning ----------------------------------------------------------------------------------------

YES, NO = True, False
ROWS = {
    # what happens: state, reason, restarts, preempt time is set; what it means, may be requeued
    "3.1 preemption, start of the grace time": ("RUNNING", "None", 0, YES, Situation.PREEMPTED, YES),
    "3.2 preemption, end of the grace time, or none": ("COMPLETING", "None", 1, NO, Situation.REQUEUED, NO),
    "3.3 preemption, mode cancel or --no-requeue": ("COMPLETING", "None", 0, YES, Situation.PREEMPTED_FOR_GOOD, YES),
    "3.4 the job has exited by itself in its grace time": ("COMPLETED", "None", 0, YES, Situation.OVER, NO),
    "3.4 the same with an exit code": ("FAILED", "NonZeroExitCode", 0, YES, Situation.OVER, NO),
    "3.5 preemption, the batch shell gets its signal": ("RUNNING", "None", 0, YES, Situation.PREEMPTED, YES),
    "3.6 preemption, the tasks get their signal": ("RUNNING", "None", 0, YES, Situation.PREEMPTED, YES),
    "3.7 preemption, a job without --signal": ("RUNNING", "None", 0, YES, Situation.PREEMPTED, YES),
    "3.8 preemption without a grace time": ("COMPLETING", "None", 1, NO, Situation.REQUEUED, NO),
    "3.9 preemption, --signal is not sent": ("RUNNING", "None", 0, YES, Situation.PREEMPTED, YES),
    "3.10 the time limit is near, the batch shell is warned": ("RUNNING", "None", 0, NO, Situation.RUNNING, YES),
    "3.11 the time limit is near, the tasks are warned": ("RUNNING", "None", 0, NO, Situation.RUNNING, YES),
    "3.12 the time limit is reached": ("COMPLETING", "TimeLimit", 0, NO, Situation.TIME_LIMIT, YES),
    "3.13 scancel": ("COMPLETING", "None", 0, NO, Situation.CANCELLED, NO),
    "3.14 scancel -s KILL": ("COMPLETING", "None", 0, NO, Situation.CANCELLED, NO),
    "3.15 scancel -s TERM or USR1": ("RUNNING", "None", 0, NO, Situation.RUNNING, YES),
    "3.16 scancel -b -s USR1": ("RUNNING", "None", 0, NO, Situation.RUNNING, YES),
    "3.17 scancel -f -s USR1": ("RUNNING", "None", 0, NO, Situation.RUNNING, YES),
    "3.18 scancel -s USR2 to a step": ("RUNNING", "None", 0, NO, Situation.RUNNING, YES),
    "3.19 scontrol requeue": ("COMPLETING", "None", 1, NO, Situation.REQUEUED, NO),
    "3.19 scontrol requeuehold": ("COMPLETING", "job_requeued_in_held_state", 1, NO, Situation.REQUEUED, NO),
    "3.20 a node is down, the job is requeued": ("COMPLETING", "None", 1, NO, Situation.REQUEUED, NO),
    "3.21 kill of srun from the batch script": ("RUNNING", "None", 0, NO, Situation.RUNNING, YES),
    "3.22 a task has failed, the others run on": ("RUNNING", "None", 0, NO, Situation.RUNNING, YES),
    "4.6 waiting for its next life": ("PENDING", "BeginTime", 1, NO, Situation.REQUEUED, NO),
    "4.7 an exit code of RequeueExit": ("PENDING", "BeginTime", 1, NO, Situation.REQUEUED, NO),
    "5.1 preemption, the grace time runs": ("RUNNING", "None", 0, YES, Situation.PREEMPTED, YES),
    "5.2 preemption, end of the grace time": ("COMPLETING", "None", 1, NO, Situation.REQUEUED, NO),
    "5.3 preemption for good": ("COMPLETING", "None", 0, YES, Situation.PREEMPTED_FOR_GOOD, YES),
    "5.3 the same, over": ("PREEMPTED", "None", 0, YES, Situation.PREEMPTED_FOR_GOOD, YES),
    "5.4 time limit reached": ("COMPLETING", "TimeLimit", 0, NO, Situation.TIME_LIMIT, YES),
    "5.4 the same, over": ("TIMEOUT", "TimeLimit", 0, NO, Situation.TIME_LIMIT, YES),
    "5.5 warned of the time limit": ("RUNNING", "None", 0, NO, Situation.RUNNING, YES),
    "5.6 cancelled": ("COMPLETING", "None", 0, NO, Situation.CANCELLED, NO),
    "5.6 the same, over": ("CANCELLED", "None", 0, NO, Situation.CANCELLED, NO),
    "5.7 scontrol requeue": ("COMPLETING", "None", 1, NO, Situation.REQUEUED, NO),
    "5.8 requeuehold": ("COMPLETING", "job_requeued_in_held_state", 1, NO, Situation.REQUEUED, NO),
    "5.8 the same, held": ("PENDING", "job_requeued_in_held_state", 1, NO, Situation.REQUEUED, NO),
    "5.9 node failure, requeued": ("COMPLETING", "None", 1, NO, Situation.REQUEUED, NO),
    "5.9 node failure, not requeued": ("COMPLETING", "NodeDown", 0, NO, Situation.NODE_FAILURE, YES),
    "5.9 the same, over": ("NODE_FAIL", "NodeDown", 0, NO, Situation.NODE_FAILURE, YES),
    "before its first life": ("PENDING", "Priority", 0, NO, Situation.PENDING, NO),
    "ended by the kernel for its memory": ("OUT_OF_MEMORY", "OutOfMemory", 0, NO, Situation.OVER, NO),
    "a word of a later Slurm": ("EXPEDITING", "None", 0, NO, Situation.OVER, NO),
}


def view(state: str, reason: str, restarts: int, preempted: bool) -> JobView:
    return JobView("7", state, reason, restarts, 1.8e9 if preempted else None, None, True, "low", "node1")


@pytest.mark.parametrize("life", [0, 3])
@pytest.mark.parametrize("row", ROWS)
def test_what_slurm_does_with_a_job(row: str, life: int) -> None:
    """Each measured row, in the job's first life and in a later one."""
    state, reason, restarts, preempted, told, requeue = ROWS[row]
    seen = view(state, reason, life + restarts, preempted)
    assert (job.situation_of(seen, life), job.may_requeue(seen, life)) == (told, requeue)


@given(
    st.sampled_from([row[0] for row in ROWS.values()]),
    st.sampled_from([row[1] for row in ROWS.values()]),
    st.booleans(),
    st.integers(1, 5),
)
def test_what_slurm_has_requeued_is_never_requeued(state: str, reason: str, preempted: bool, more: int) -> None:
    """Whatever else holds: a job that has more restarts than this life knows of has another life already."""
    assert not job.may_requeue(view(state, reason, 2 + more, preempted), 2)
