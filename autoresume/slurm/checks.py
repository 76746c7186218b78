"""What a cluster's configuration means for a run that is preempted.

Law: pure functions from what Slurm prints (`queue.configuration`, `queue.partitions`, `queue.qualities`) to
findings; no command is run here. What a setting does was seen on real clusters, see docs/doctor.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from autoresume.base.findings import Finding, Verdict
from autoresume.errors import EXIT_HOPELESS, EXIT_STOPPED
from autoresume.slurm.job import JobView
from autoresume.slurm.queue import requeue_codes, seconds

_PASS, _WARN, _FAIL, _UNKNOWN = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.UNKNOWN
_OLDEST = (22, 5)
"""The oldest Slurm that autoresume has been tried with."""
_CREDENTIAL_SECONDS = 120
_KILL_WAIT_SECONDS = 30.0
_SHORT_SECONDS = 10.0
_SHORT_LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class Preemption:
    """What a preemption does to a job, and what time that leaves."""

    mode: str
    """off, requeue, cancel or suspend."""
    grace_seconds: float
    kill_wait_seconds: float

    @property
    def seconds(self) -> float:
        """From the first signal to the kill. Without a grace time there is KillWait."""
        return self.grace_seconds or self.kill_wait_seconds


def preemption(
    configuration: Mapping[str, str],
    partition: Mapping[str, str] | None = None,
    quality: Mapping[str, str] | None = None,
) -> Preemption | None:
    """What happens to a job of this partition, or of this quality of service; None if what decides is not known."""
    kind, mode = configuration.get("PreemptType", ""), configuration.get("PreemptMode", "")
    kill_wait = seconds(configuration.get("KillWait", ""))
    kill_wait = _KILL_WAIT_SECONDS if kill_wait is None else kill_wait
    if _absent(kind) or kind.endswith("/none"):
        return Preemption("off", 0.0, kill_wait)
    decides = quality if by_quality(configuration) else partition
    if decides is None:
        return None
    own = decides.get("PreemptMode", "").upper()
    grace = seconds_of_time(decides.get("GraceTime", ""))
    return Preemption(_mode(mode if own in ("", "CLUSTER") else own), grace or 0.0, kill_wait)


def by_quality(configuration: Mapping[str, str]) -> bool:
    """Whether a job's quality of service decides about its preemption, and not its partition."""
    return configuration.get("PreemptType", "").endswith("/qos")


def _mode(text: str) -> str:
    """GANG only says that jobs can share, and WITHIN who may preempt."""
    words = [word for word in re.split(r"\W+", text.upper()) if word not in ("", "GANG", "WITHIN")]
    return words[0].lower() if words else "off"


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


def cluster(configuration: Mapping[str, str]) -> list[Finding]:
    """What holds in every partition."""
    return [
        _version(configuration),
        _preempts(configuration),
        _requeue_default(configuration),
        _exit_codes(configuration),
        _kill_wait(configuration),
        _user_signal(configuration),
        _tracking(configuration),
        _log_file(configuration),
        _delay(configuration),
        _memory(configuration),
    ]


def _version(configuration: Mapping[str, str]) -> Finding:
    text = configuration.get("SLURM_VERSION", "")
    match = re.match(r"(\d+)\.(\d+)", text)
    if not match:
        return Finding("Slurm", _UNKNOWN, "its version is not told", "autoresume needs 22.05 or later")
    if (int(match.group(1)), int(match.group(2))) < _OLDEST:
        return Finding(
            "Slurm",
            _WARN,
            f"version {text}",
            "older than 22.05, the oldest that was tried",
            "Try with a short job first.",
        )
    return Finding("Slurm", _PASS, f"version {text}", "its controller answers")


def _preempts(configuration: Mapping[str, str]) -> Finding:
    kind, mode = configuration.get("PreemptType", ""), configuration.get("PreemptMode", "")
    if _absent(kind) or kind.endswith("/none"):
        return Finding(
            "preemption", _PASS, "no job is preempted", "a run ends early by its time limit or a node's failure only"
        )
    who = "quality of service" if by_quality(configuration) else "partition"
    return Finding(
        "preemption", _PASS, f"PreemptType={kind}, PreemptMode={mode}", f"what it does to a job depends on its {who}"
    )


def _requeue_default(configuration: Mapping[str, str]) -> Finding:
    if configuration.get("JobRequeue") == "0":
        return Finding(
            "requeue",
            _WARN,
            "JobRequeue=0",
            "a job is not run again after a preemption or a node's failure unless it asks for it when it is submitted",
            "autoresume sbatch submits with --requeue; do so in scripts of your own.",
        )
    return Finding("requeue", _PASS, "JobRequeue=1", "jobs may be run again")


def _exit_codes(configuration: Mapping[str, str]) -> Finding:
    text, held = (configuration.get(name, "") for name in ("RequeueExit", "RequeueExitHold"))
    codes = requeue_codes(text)
    if not codes:
        return Finding("exit codes", _PASS, "no RequeueExit", "the node daemon asks for a requeue by scontrol")
    for code, what in ((1, "failed"), (EXIT_HOPELESS, "can't be mended"), (EXIT_STOPPED, "its user has stopped")):
        if code in codes and code not in requeue_codes(held):
            return Finding(
                "exit codes",
                _WARN,
                f"RequeueExit={text}",
                f"Slurm runs every job again that exits with {code}, also a run that {what}: again and again",
                "Cancel such a job with scancel, or ask the administrators for a code that nothing else uses, e.g. 85.",
            )
    return Finding(
        "exit codes", _PASS, f"RequeueExit={text}", f"the node daemon asks for a requeue by exit code {codes[0]}"
    )


def _kill_wait(configuration: Mapping[str, str]) -> Finding:
    wait = seconds(configuration.get("KillWait", ""))
    if wait is None:
        return Finding("kill wait", _UNKNOWN, "no KillWait is told", "30 s are assumed from SIGTERM to SIGKILL")
    found = f"KillWait={wait:.0f} s"
    if wait < _SHORT_SECONDS:
        return Finding(
            "kill wait",
            _WARN,
            found,
            "that is all the time after scancel, at the time limit, when another node fails, and without a grace time",
            "Save often (save_every), and let the run stop by itself before its time limit, as it does by default.",
        )
    return Finding("kill wait", _PASS, found, "from SIGTERM to SIGKILL where there is no grace time")


def sends_user_signal(configuration: Mapping[str, str]) -> bool:
    """Whether a preempted job gets its --signal at the start of its grace time, instead of SIGTERM."""
    words = re.split(r"\W+", configuration.get("SlurmctldParameters", ""))
    return "preempt_send_user_signal" in words or "send_user_signal" in re.split(
        r"\W+", configuration.get("PreemptParameters", "")
    )


def _user_signal(configuration: Mapping[str, str]) -> Finding:
    if not sends_user_signal(configuration):
        return Finding(
            "signal",
            _PASS,
            "no preempt_send_user_signal",
            "the grace time begins with SIGTERM to what srun started; --signal warns of the time limit only",
        )
    return Finding(
        "signal",
        _WARN,
        "preempt_send_user_signal",
        "the grace time begins with the job's --signal, if it has one; with --signal=B:... only the batch script gets "
        "it, and the node daemon learns nothing before the grace time is over",
        "Submit without --signal, or with --signal=USR1@120, without B:.",
    )


def _tracking(configuration: Mapping[str, str]) -> Finding:
    kind = configuration.get("ProctrackType", "")
    if kind.endswith("/cgroup"):
        return Finding(
            "processes", _PASS, kind, "only what srun starts gets signals, no child of the batch script or of a shell"
        )
    return Finding(
        "processes",
        _WARN,
        f"ProctrackType={kind or 'unknown'}",
        "signals go to all processes of a job, and one that ignores them can outlive the job on its node",
        "Start with srun autoresume node, which ends its ranks; look for left-over processes where a node was lost.",
    )


def _log_file(configuration: Mapping[str, str]) -> Finding:
    appends = configuration.get("JobFileAppend") == "1"
    found = f"JobFileAppend={configuration.get('JobFileAppend', '?')}"
    if appends:
        return Finding("log file", _PASS, found, "the log of a job goes on after a requeue")
    means = "a requeue empties the job's log, unless the job has --open-mode=append, which autoresume sbatch gives it"
    return Finding("log file", _PASS, found, means, "Give it in scripts of your own.")


def _delay(configuration: Mapping[str, str]) -> Finding:
    match = re.search(r"cred_expire=(\d+)", configuration.get("AuthInfo", ""))
    delay = int(match.group(1)) if match else _CREDENTIAL_SECONDS
    delay = delay if delay >= 5 else _CREDENTIAL_SECONDS  # less is refused by Slurm
    return Finding(
        "requeue delay",
        _PASS,
        f"{delay} s",
        "a requeued job can't start earlier than that after its end, however many nodes are idle",
    )


def _memory(configuration: Mapping[str, str]) -> Finding:
    if configuration.get("ConstrainRAMSpace", "").lower() == "yes":
        return Finding(
            "job's memory",
            _PASS,
            "ConstrainRAMSpace=yes",
            "what a job keeps in /dev/shm counts against its --mem: two snapshots of the node's share of the state",
        )
    return Finding("job's memory", _PASS, "ConstrainRAMSpace=no", "a job's memory is bounded by the node's alone")


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
    if ends.grace_seconds < _SHORT_SECONDS:
        return Finding(
            "grace", _WARN, found, "little time to reach a step's end and to save", "Save often (save_every)."
        )
    return Finding("grace", _PASS, found, f"from SIGTERM to the end, and {wait} more for what is being written")


def _time_limit(configuration: Mapping[str, str], name: str, settings: Mapping[str, str]) -> Finding:
    longest, usual = (seconds_of_time(settings.get(key, "")) for key in ("MaxTime", "DefaultTime"))
    over = settings.get("OverTimeLimit", "")
    over = configuration.get("OverTimeLimit", "") if _absent(over) or over == "NONE" else over
    usual = longest if usual is None else usual
    found = f"partition {name}: MaxTime={settings.get('MaxTime', '?')}, DefaultTime={settings.get('DefaultTime', '?')}"
    if not _absent(over) and seconds(over) != 0:
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


def _absent(value: str) -> bool:
    return value in ("", "(null)", "N/A")


def seconds_of_time(text: str) -> float | None:
    """Of Slurm's "1-12:00:00", "00:30:00", "10:00" or (of GraceTime) "120"; None for UNLIMITED, NONE and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", text.strip())
    if not match:
        return None
    days, parts = int(match.group(1) or 0), [int(part) for part in match.group(2).split(":")]
    if match.group(1):  # days-hours[:minutes[:seconds]]
        parts += [0] * (3 - len(parts))
    total = 0
    for part in parts:
        total = total * 60 + part
    return float(days * 86400 + total)
