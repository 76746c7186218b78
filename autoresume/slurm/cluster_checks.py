"""What the settings of a cluster mean for a run that is preempted.

Law: pure; no command is run here. Of what `scontrol show config` prints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from autoresume.base.findings import Finding, Verdict
from autoresume.errors import EXIT_HOPELESS, EXIT_STOPPED
from autoresume.slurm.preemption import SHORT_SECONDS, by_quality, is_absent
from autoresume.slurm.queue import requeue_codes, seconds

_PASS, _WARN, _UNKNOWN = Verdict.PASS, Verdict.WARN, Verdict.UNKNOWN
_OLDEST = (22, 5)
"""The oldest Slurm that autoresume has been tried with."""

_CREDENTIAL_SECONDS = 120


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
    if is_absent(kind) or kind.endswith("/none"):
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
    if wait < SHORT_SECONDS:
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
