"""What Slurm's answers, a partition and a job mean for a run that is preempted; cluster_checks.py has the cluster.

Law: pure functions from what Slurm prints (`queue.configuration`, `queue.partitions`, `queue.qualities`) to
findings; no command is run here. What a setting does was seen on real clusters, see docs/doctor.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from autoresume.base.findings import Finding, Verdict
from autoresume.slurm.job import JobView
from autoresume.slurm.preemption import (
    SHORT_SECONDS,
    Preemption,
    by_quality,
    is_absent,
    preemption,
    seconds_of_time,
)
from autoresume.slurm.queue import seconds

_PASS, _WARN, _FAIL, _UNKNOWN = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.UNKNOWN
_SHORT_LIMIT_SECONDS = 600.0


# -- whether Slurm answers ----------------------------------------------------------------------------


def away(words: str) -> Finding:
    return Finding(
        "Slurm",
        _FAIL,
        f"its controller does not answer: {words}",
        "nothing can be submitted now, and nothing is known of its settings; jobs that run are not harmed",
        "Try again in a minute (scontrol ping tells when it is back).",
    )


def without_cluster(words: str) -> bool:
    """Whether Slurm's client is installed, but belongs to no cluster."""
    return "configuration source" in words


def refused(words: str) -> Finding:
    means = "Slurm does not tell its settings, and would take no job"
    return Finding("Slurm", _FAIL, words, means, "Look at SLURM_CONF and PATH, or ask your administrators.")


def submission(refusal: str | None) -> Finding:
    """`refusal`: why Slurm would not take a plain job of one node."""
    if refusal is None:
        return Finding("submission", _PASS, "sbatch --test-only takes a job of one node", "you may submit there")
    more = "If your jobs need an account, a time or GPUs, that may be all that is missing here."
    return Finding("submission", _WARN, refusal, "Slurm would refuse a job of one node without further options", more)


# -- the cluster --------------------------------------------------------------------------------------


# -- a partition --------------------------------------------------------------------------------------


def partition(
    configuration: Mapping[str, str], settings: Mapping[str, str], quality: Mapping[str, str] | None = None
) -> list[Finding]:
    """What holds for a job of this partition (and of this quality of service, where that decides)."""
    name = settings.get("PartitionName", "?")
    found = [] if settings.get("State", "UP") == "UP" else [_closed(name, settings["State"])]
    named = by_quality(configuration) and quality
    where = f"quality of service {quality.get('Name', '?')}" if named and quality else f"partition {name}"
    ends = preemption(configuration, settings, quality)
    if ends is None:
        found.append(
            Finding(
                "grace",
                _UNKNOWN,
                "PreemptType=preempt/qos, and no quality of service is known",
                "its GraceTime and PreemptMode are those of the job's quality of service",
                "Give --qos NAME (sacctmgr show qos lists them).",
            )
        )
    else:
        found.append(_how_it_ends(where, ends))
        if ends.mode not in ("off", "suspend"):
            found.append(_grace(where, ends))
    return [*found, _time_limit(configuration, name, settings)]


def _closed(name: str, state: str) -> Finding:
    return Finding(
        "partition",
        _FAIL,
        f"{name} is {state}",
        "a job waits there, or is refused",
        "Choose another (sinfo lists them).",
    )


def _how_it_ends(where: str, ends: Preemption) -> Finding:
    name, found = "when preempted", f"{where}: PreemptMode={ends.mode.upper()}"
    if ends.mode == "off":
        return Finding(name, _PASS, found, "jobs here are not preempted")
    if ends.mode == "requeue":
        return Finding(name, _PASS, found, "Slurm ends the job and runs it again")
    if ends.mode == "suspend":
        return Finding(
            name,
            _WARN,
            found,
            "a preempted job is stopped where it is and goes on later; nothing is saved at that moment, its memory and "
            "GPU memory stay in use, and connections to other machines may time out",
            "Save often (save_every): a suspended job is lost with its node.",
        )
    if ends.mode == "cancel":
        return Finding(
            name,
            _WARN,
            found,
            f"Slurm ends the job for good; autoresume asks for a requeue in the {ends.seconds:.0f} s before",
            "Submit with --requeue, and start the ranks by srun; what the batch script starts by itself does not ask.",
        )
    return Finding(name, _UNKNOWN, found, "autoresume does not know this mode")


def _grace(where: str, ends: Preemption) -> Finding:
    wait = f"KillWait={ends.kill_wait_seconds:.0f} s"
    if ends.grace_seconds <= 0:
        means, verdict = f"the job is ended at once: SIGTERM, and SIGKILL after {wait}", _WARN
        if ends.kill_wait_seconds <= 0:
            means = f"the job is killed without a warning ({wait}): nothing is saved, and nobody can ask for a requeue"
            verdict = _FAIL if ends.mode == "cancel" else _WARN
        remedy = "Save often (save_every): what was done since the last save may be lost."
        return Finding("grace", verdict, f"{where}: GraceTime=0", means, remedy)
    found = f"{where}: GraceTime={ends.grace_seconds:.0f} s"
    if ends.grace_seconds < SHORT_SECONDS:
        return Finding(
            "grace", _WARN, found, "little time to reach a step's end and to save", "Save often (save_every)."
        )
    return Finding("grace", _PASS, found, f"from SIGTERM to the end, and {wait} more for what is being written")


def _time_limit(configuration: Mapping[str, str], name: str, settings: Mapping[str, str]) -> Finding:
    longest, usual = (seconds_of_time(settings.get(key, "")) for key in ("MaxTime", "DefaultTime"))
    over = settings.get("OverTimeLimit", "")
    over = configuration.get("OverTimeLimit", "") if is_absent(over) or over == "NONE" else over
    usual = longest if usual is None else usual
    found = f"partition {name}: MaxTime={settings.get('MaxTime', '?')}, DefaultTime={settings.get('DefaultTime', '?')}"
    if not is_absent(over) and seconds(over) != 0:
        found += f", OverTimeLimit={over}"
    if usual is not None and usual < _SHORT_LIMIT_SECONDS:
        return Finding(
            "time limit",
            _WARN,
            found,
            "a job without --time is too short for a start, a save and the margin before its limit",
            "Submit with --time.",
        )
    if longest is None:
        return Finding("time limit", _PASS, found, "a job may run as long as it asks for")
    return Finding("time limit", _PASS, found, "a longer training takes several lives: it saves before each limit")


# -- a job --------------------------------------------------------------------------------------------


def job(view: JobView, ends: Preemption | None) -> list[Finding]:
    """What holds for this job. `ends`: what a preemption does in its partition, if that is known."""
    name, found = "this job", f"job {view.spelled} ({view.state}) in partition {view.partition}"
    if view.requeue:
        return [Finding(name, _PASS, f"{found}: may be requeued", f"it has been {view.restarts} times")]
    remedy = f"scontrol update job={view.spelled} requeue=1, and submit with --requeue the next time."
    if ends is not None and ends.mode != "off" and ends.grace_seconds <= 0:
        return [
            Finding(name, _FAIL, f"{found}: --no-requeue", "without a grace time a preemption ends it for good", remedy)
        ]
    means = "Slurm does not run it again; the node daemon can change that in the grace time, a node's failure ends it"
    return [Finding(name, _WARN, f"{found}: --no-requeue", means, remedy)]


# -- words --------------------------------------------------------------------------------------------
