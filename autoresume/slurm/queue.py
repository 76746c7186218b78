"""Asking Slurm about jobs and itself, and asking it for something: look, requeue, leave nodes out, cancel.

Law: commands and their answers; what to do is decided elsewhere. Raises the errors of `commands`.
"""

from __future__ import annotations

import re

from autoresume.slurm import commands, job
from autoresume.slurm.commands import SlurmRefused
from autoresume.slurm.job import JobView


def look(spelled: str, patience_seconds: float = 0.0) -> JobView | None:
    """The job, or None if Slurm has forgotten it."""
    try:
        found = job.parse(commands.run(["scontrol", "-o", "show", "job", spelled], patience_seconds))
    except SlurmRefused as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return found[0] if found else None


def look_at_all(spelled: str) -> list[JobView]:
    """The job, or all tasks of the array."""
    try:
        return job.parse(commands.run(["scontrol", "-o", "show", "job", spelled]))
    except SlurmRefused as error:
        if "Invalid job id" in str(error):
            return []
        raise


def requeue(spelled: str, patience_seconds: float = 30.0) -> None:
    """Have the job run again. Whether it may be asked is for the caller to look at first."""
    try:
        _requeue_once(spelled, patience_seconds)
    except SlurmRefused as error:
        if "disabled" not in str(error):
            raise
        commands.run(["scontrol", "update", f"job={spelled}", "requeue=1"], patience_seconds)
        _requeue_once(spelled, patience_seconds)


def _requeue_once(spelled: str, patience_seconds: float) -> None:
    try:
        commands.run(["scontrol", "requeue", spelled], patience_seconds)
    except SlurmRefused as error:
        if "pending" not in str(error):  # else Slurm was quicker
            raise


def leave_out(spelled: str, nodes: tuple[str, ...], already: str = "") -> None:
    """Let a job that was requeued not run on these nodes."""
    so_far = re.split(r",(?![^\[]*\])", already)  # at commas outside of node[1,3]
    listed = ",".join(dict.fromkeys(filter(None, [*so_far, *nodes])))
    commands.run(["scontrol", "update", f"job={spelled}", f"ExcNodeList={listed}"], 10.0)


def cancel(spelled: str) -> None:
    """As its user does it. The job is told by SIGTERM, and killed after KillWait."""
    commands.run(["scancel", spelled], 10.0)


def cancel_if_waiting(spelled: str) -> None:
    """Of an array those tasks that wait; what has been started meanwhile goes on."""
    commands.run(["scancel", "--state=PENDING", spelled], 10.0)


def configuration(patience_seconds: float = 0.0) -> dict[str, str]:
    """Slurm's configuration by name, as `scontrol show config` prints it."""
    text = commands.run(["scontrol", "show", "config"], patience_seconds)
    pairs = (re.match(r"(\S+)\s+= ?(.*)", line) for line in text.splitlines())
    return {pair.group(1): pair.group(2).strip() for pair in pairs if pair}


def partitions() -> dict[str, dict[str, str]]:
    """The settings of each partition by its name, as `scontrol show partition` prints them."""
    lines = commands.run(["scontrol", "-o", "show", "partition"], 10.0).splitlines()
    found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("PartitionName=")]
    return {settings["PartitionName"]: settings for settings in found}


def qualities() -> dict[str, dict[str, str]]:
    """Name, PreemptMode and GraceTime of each quality of service, by its name; they are kept with the accounting."""
    columns = ("Name", "PreemptMode", "GraceTime")
    text = commands.run(["sacctmgr", "-nP", "show", "qos", f"format={','.join(columns)}"], 10.0)
    found = [dict(zip(columns, line.split("|"))) for line in text.splitlines() if line.count("|") == 2]
    return {settings["Name"]: settings for settings in found}


def refusal(options: tuple[str, ...] = ()) -> str | None:
    """Why sbatch would not take a job of one node with these options, in Slurm's words; None if it would."""
    try:
        commands.run(["sbatch", "--test-only", "--nodes=1", *options, "--wrap=true"])
    except SlurmRefused as error:
        return str(error)
    return None


def requeue_codes(configured: str) -> tuple[int, ...]:
    """The exit codes of RequeueExit: "85", "75,85" or "1-9"."""
    found: list[int] = []
    for part in re.findall(r"\d+(?:-\d+)?", configured):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(code for code in found if code)


def seconds(configured: str) -> float | None:
    """Of a value like "30 sec"; None for none."""
    match = re.match(r"(\d+)", configured)
    return float(match.group(1)) if match else None
