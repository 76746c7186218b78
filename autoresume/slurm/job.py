"""One job as Slurm describes it, and what that says of a signal.

Law: values and pure functions. The rules are those of docs/slurm.md, each row of which has a test: the words were
seen on real clusters, not taken from a manual.
"""

from __future__ import annotations

import datetime
import enum
import re
from dataclasses import dataclass


class Situation(enum.Enum):
    """What Slurm is doing with a job."""

    PENDING = "pending"
    RUNNING = "running"
    PREEMPTED = "preempted"
    """It is in its grace time, and still runs: Slurm does not requeue a job that exits now."""
    PREEMPTED_FOR_GOOD = "preempted for good"
    """It is being ended for a preemption, and will not be requeued by Slurm."""
    REQUEUED = "requeued"
    """Slurm has requeued it already, whyever."""
    TIME_LIMIT = "time limit"
    NODE_FAILURE = "node failure"
    CANCELLED = "cancelled"
    OVER = "over"
    """It has ended."""


ACTIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD")
"""The states of a job that waits or runs."""


@dataclass(frozen=True)
class JobView:
    """A job at one moment. Times are seconds since 1970, None where Slurm names none."""

    id: str
    state: str
    reason: str
    restarts: int
    preempt_time: float | None
    end_time: float | None
    requeue: bool
    partition: str
    nodes: str
    name: str = ""
    array: str | None = None
    """<array>_<task>, for a task of an array."""
    excluded: str = ""
    quality: str = ""
    """Of service (QOS)."""

    @property
    def spelled(self) -> str:
        """How Slurm's commands name this job alone: an array's last task has the array's own number."""
        return self.array or self.id


_KEY = r"(?:^|\s){key}=(.*?)(?=\s[A-Za-z][\w:/]*=|\s*$)"
_NAME = re.compile(r"(?<=\sJobName=)(.*?)(?=\sUserId=)")
"""It comes before what we read, and its user may have written anything into it."""


def parse(text: str) -> list[JobView]:
    """The jobs that `scontrol -o show job` describes, one a line."""
    return [_parse_line(line) for line in text.splitlines() if line.startswith("JobId=")]


def _parse_line(line: str) -> JobView:
    named = _NAME.search(line)
    line = _NAME.sub("", line, count=1)

    def find(key: str) -> str:
        match = re.search(_KEY.format(key=re.escape(key)), line)
        value = match.group(1).strip() if match else ""
        return "" if value == "(null)" else value

    array, task = find("ArrayJobId"), find("ArrayTaskId")
    return JobView(
        id=find("JobId"),
        state=find("JobState"),
        reason=find("Reason"),
        restarts=int(find("Restarts") or 0),
        preempt_time=moment(find("PreemptTime")),
        end_time=moment(find("EndTime")),
        requeue=find("Requeue") == "1",
        partition=find("Partition"),
        nodes=find("NodeList"),
        name=named.group() if named else "",
        array=f"{array}_{task}" if array and task.isdigit() else None,
        excluded=find("ExcNodeList"),
        quality=find("QOS"),
    )


def moment(text: str) -> float | None:
    """Seconds since 1970 of a time as Slurm spells it; None for N/A, Unknown and None."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def situation_of(view: JobView, restart: int) -> Situation:
    """What Slurm is doing with the job, as seen by its life number `restart` (SLURM_RESTART_COUNT)."""
    if view.restarts > restart:
        return Situation.REQUEUED
    if view.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"):
        return Situation.PENDING
    if view.state in ("RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"):
        return Situation.PREEMPTED if view.preempt_time is not None else Situation.RUNNING
    if view.state == "COMPLETING":
        if view.reason == "TimeLimit":
            return Situation.TIME_LIMIT
        if view.reason in ("NodeDown", "NodeFail"):
            return Situation.NODE_FAILURE
        return Situation.PREEMPTED_FOR_GOOD if view.preempt_time is not None else Situation.CANCELLED
    return {
        "TIMEOUT": Situation.TIME_LIMIT,
        "DEADLINE": Situation.TIME_LIMIT,
        "PREEMPTED": Situation.PREEMPTED_FOR_GOOD,
        "NODE_FAIL": Situation.NODE_FAILURE,
        "BOOT_FAIL": Situation.NODE_FAILURE,
        "CANCELLED": Situation.CANCELLED,
    }.get(view.state, Situation.OVER)


def may_requeue(view: JobView, restart: int) -> bool:
    """Whether this job may be asked to run again.

    A requeue from a dying job revives it even if its user cancelled it: that is never asked for.
    """
    return situation_of(view, restart) in (
        Situation.RUNNING,
        Situation.PREEMPTED,
        Situation.TIME_LIMIT,
        Situation.PREEMPTED_FOR_GOOD,
        Situation.NODE_FAILURE,
    )
