"""What Slurm tells a task of a job in its environment, as one value.

Law: what a task is, is read here alone. A life's record notes the job that it ran in by itself
(checkpoint/incarnation.py), since that is below.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task of a job step: with the node daemon, one a node."""

    job: str
    restart: int
    """How often the job has been requeued. Slurm leaves it out in the first life."""
    rank: int
    tasks: int
    local_rank: int
    local_tasks: int
    node: str
    partition: str
    array_job: str | None = None
    array_task: str | None = None
    end: float | None = None
    """When the time limit ends the job, in seconds since 1970, where this version of Slurm says so."""
    in_step: bool = True
    """Started by srun. The batch script itself is no task."""

    @property
    def spelled(self) -> str:
        """How Slurm's commands name this job alone: an array's last task has the array's own number."""
        return f"{self.array_job}_{self.array_task}" if self.array_job and self.array_task else self.job

    @property
    def life(self) -> str:
        """A name for this life of the job: its number and its restarts."""
        return f"{self.job}-{self.restart}"

    def __repr__(self) -> str:
        where = f"task {self.rank} of {self.tasks} on {self.node}" if self.in_step else f"batch script on {self.node}"
        return f"Slurm job {self.spelled}, life {self.restart}, {where}"


def read(environment: Mapping[str, str] = os.environ) -> Task | None:
    """The task that this process is, or None outside of Slurm."""
    job = environment.get("SLURM_JOB_ID")
    if not job:
        return None

    def number(name: str, otherwise: int) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdigit() else otherwise

    end = environment.get("SLURM_JOB_END_TIME", "")
    in_step = "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment
    tasks = number("SLURM_STEP_NUM_TASKS", number("SLURM_NTASKS", 1)) if in_step else 1
    here = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "1")
    return Task(
        job=job,
        restart=number("SLURM_RESTART_COUNT", 0),
        rank=number("SLURM_PROCID", 0) if in_step else 0,
        tasks=tasks,
        local_rank=number("SLURM_LOCALID", 0) if in_step else 0,
        local_tasks=_of_node(here, number("SLURM_NODEID", 0)) if in_step else 1,
        node=environment.get("SLURMD_NODENAME", ""),
        partition=environment.get("SLURM_JOB_PARTITION", ""),
        array_job=environment.get("SLURM_ARRAY_JOB_ID"),
        array_task=environment.get("SLURM_ARRAY_TASK_ID"),
        end=float(end) if end.isdigit() and int(end) else None,
        in_step=in_step,
    )


def nodes(environment: Mapping[str, str] = os.environ) -> int:
    """Of the job that this process is in; 1 outside of Slurm."""
    value = environment.get("SLURM_JOB_NUM_NODES", "")
    return int(value) if value.isdigit() else 1


def configuration_file(environment: Mapping[str, str] = os.environ) -> str | None:
    """Where Slurm's commands are told to look for their configuration; by themselves they know a place."""
    return environment.get("SLURM_CONF") or None


def _of_node(text: str, node: int) -> int:
    """The tasks of a node, from Slurm's "2(x3),1"."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count or 1)] * int(times.rstrip(")") or 1)
    return counts[node] if node < len(counts) else 1
