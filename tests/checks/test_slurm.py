"""What the settings of a cluster mean: configuration in, findings out."""

from __future__ import annotations

from typing import Any

import pytest

from autoresume.base.findings import Finding, Verdict, summary
from autoresume.slurm import checks, cluster_checks, preemption
from autoresume.slurm.job import JobView
from autoresume.slurm.preemption import Preemption

# What `scontrol show config` and `scontrol show partition` print where preemption goes by partition, with a grace time.
BY_PARTITION = {
    "AuthInfo": "(null)",
    "ConstrainRAMSpace": "yes",
    "JobFileAppend": "0",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "OverTimeLimit": "0 min",
    "PreemptMode": "REQUEUE",
    "PreemptType": "preempt/partition_prio",
    "ProctrackType": "proctrack/cgroup",
    "RequeueExit": "(null)",
    "RequeueExitHold": "(null)",
    "SLURM_VERSION": "23.11.4",
    "SlurmctldParameters": "enable_configless",
}
LOW = {
    "PartitionName": "low",
    "Default": "YES",
    "DefaultTime": "01:00:00",
    "GraceTime": "120",
    "MaxTime": "2-00:00:00",
    "OverTimeLimit": "NONE",
    "PreemptMode": "REQUEUE",
    "State": "UP",
}
ALL = [
    "Slurm", "preemption", "requeue", "exit codes", "kill wait", "signal", "processes", "log file", "requeue delay",
    "job's memory", "when preempted", "grace", "time limit",
]  # fmt: skip


def judge(
    configuration: dict[str, str] | None = None,
    partition: dict[str, str] | None = None,
    quality: dict[str, str] | None = None,
    job: dict[str, Any] | None = None,
) -> dict[str, Finding]:
    """All findings by name, for the typical cluster above with these settings changed."""
    settings, configured = {**LOW, **(partition or {})}, {**BY_PARTITION, **(configuration or {})}
    found = cluster_checks.cluster(configured) + checks.partition(configured, settings, quality)
    if job is not None:
        found += checks.job(view(**job), preemption.preemption(configured, settings, quality))
    by_name = {finding.name: finding for finding in found}
    assert len(by_name) == len(found), "two findings have one name"
    return by_name


def view(**given: Any) -> JobView:
    usual = {
        "id": "7", "state": "PENDING", "reason": "", "restarts": 0, "preempt_time": None, "end_time": None,
        "requeue": True, "partition": "low", "nodes": "",
    }  # fmt: skip
    return JobView(**{**usual, **given})


def test_a_cluster_that_preempts_by_partition_with_a_grace_time_has_no_fault() -> None:
    """All of it is looked at, and passes; the time that is left is the grace time."""
    found = judge()
    assert list(found) == ALL
    assert {finding.verdict for finding in found.values()} == {Verdict.PASS}
    assert found["grace"].found == "partition low: GraceTime=120 s"
    assert preemption.preemption(BY_PARTITION, LOW) == Preemption("requeue", 120.0, 30.0)


def test_the_time_that_is_left() -> None:
    """The grace time, or KillWait where there is none."""
    assert Preemption("requeue", 120.0, 30.0).seconds == 120.0
    assert Preemption("requeue", 0.0, 30.0).seconds == 30.0


CHANGES: list[tuple[str, dict[str, Any], dict[str, Verdict], str]] = [
    (
        "no grace time",
        {"partition": {"GraceTime": "0"}},
        {"grace": Verdict.WARN},
        "the job is ended at once: SIGTERM, and SIGKILL after KillWait=30 s",
    ),
    (
        "a grace time of some seconds",
        {"partition": {"GraceTime": "5"}},
        {"grace": Verdict.WARN},
        "little time",
    ),
    (
        "PreemptMode=CANCEL, with time to ask for a requeue",
        {"partition": {"PreemptMode": "CANCEL"}},
        {"when preempted": Verdict.WARN},
        "autoresume asks for a requeue in the 120 s before",
    ),
    (
        "PreemptMode=CANCEL by the cluster, where the partition says nothing",
        {"configuration": {"PreemptMode": "CANCEL"}, "partition": {"PreemptMode": ""}},
        {"when preempted": Verdict.WARN},
        "for good",
    ),
    (
        "killed at once and for good",
        {"configuration": {"KillWait": "0 sec"}, "partition": {"PreemptMode": "CANCEL", "GraceTime": "0"}},
        {"when preempted": Verdict.WARN, "kill wait": Verdict.WARN, "grace": Verdict.FAIL},
        "killed without a warning",
    ),
    (
        "killed at once, but requeued by Slurm",
        {"configuration": {"KillWait": "0 sec"}, "partition": {"GraceTime": "0"}},
        {"kill wait": Verdict.WARN, "grace": Verdict.WARN},
        "killed without a warning",
    ),
    (
        "suspended",
        {"configuration": {"PreemptMode": "GANG,SUSPEND"}, "partition": {"PreemptMode": "SUSPEND"}},
        {"when preempted": Verdict.WARN},
        "GPU memory stay in use",
    ),
    (
        "a mode of the future",
        {"partition": {"PreemptMode": "TELEPORT"}},
        {"when preempted": Verdict.UNKNOWN},
        "does not know this mode",
    ),
    ("a partition that is not preempted", {"partition": {"PreemptMode": "OFF", "GraceTime": "0"}}, {}, "not preempted"),
    (
        "no preemption at all",
        {"configuration": {"PreemptType": "preempt/none", "PreemptMode": "OFF"}},
        {},
        "no job is preempted",
    ),
    ("no preemption, as newer ones print it", {"configuration": {"PreemptType": "(null)"}}, {}, "no job is preempted"),
    (
        "jobs are not requeued by default",
        {"configuration": {"JobRequeue": "0"}},
        {"requeue": Verdict.WARN},
        "--requeue",
    ),
    (
        "a requeue by exit code",
        {"configuration": {"RequeueExit": "85"}},
        {},
        "asks for a requeue by exit code 85",
    ),
    (
        "every failure is requeued",
        {"configuration": {"RequeueExit": "1-9"}},
        {"exit codes": Verdict.WARN},
        "exits with 1, also a run that failed",
    ),
    (
        "a stop by the user is requeued",
        {"configuration": {"RequeueExit": "75-77"}},
        {"exit codes": Verdict.WARN},
        "exits with 76, also a run that its user has stopped",
    ),
    (
        "the user's signal instead of SIGTERM",
        {"configuration": {"SlurmctldParameters": "enable_configless,preempt_send_user_signal"}},
        {"signal": Verdict.WARN},
        "--signal=B:... only the batch script",
    ),
    (
        "the same, as newer ones spell it",
        {"configuration": {"PreemptParameters": "youngest_first,send_user_signal"}},
        {"signal": Verdict.WARN},
        "preempt_send_user_signal",
    ),
    (
        "a quick kill",
        {"configuration": {"KillWait": "5 sec"}},
        {"kill wait": Verdict.WARN},
        "KillWait=5 s",
    ),
    ("no kill wait told", {"configuration": {"KillWait": ""}}, {"kill wait": Verdict.UNKNOWN}, "30 s are assumed"),
    (
        "processes are followed by their parents",
        {"configuration": {"ProctrackType": "proctrack/linuxproc"}},
        {"processes": Verdict.WARN},
        "outlive the job",
    ),
    ("logs go on", {"configuration": {"JobFileAppend": "1"}}, {}, "goes on after a requeue"),
    (
        "credentials that expire soon",
        {"configuration": {"AuthInfo": "socket=/run/s,cred_expire=30"}},
        {},
        "requeue delay: 30 s",
    ),
    ("too soon, which Slurm refuses", {"configuration": {"AuthInfo": "cred_expire=3"}}, {}, "requeue delay: 120 s"),
    ("an old Slurm", {"configuration": {"SLURM_VERSION": "20.11.9"}}, {"Slurm": Verdict.WARN}, "older than 22.05"),
    ("a nameless Slurm", {"configuration": {"SLURM_VERSION": ""}}, {"Slurm": Verdict.UNKNOWN}, "not told"),
    ("a closed partition", {"partition": {"State": "DRAIN"}}, {"partition": Verdict.FAIL}, "low is DRAIN"),
    (
        "five minutes unless it is asked for more",
        {"partition": {"DefaultTime": "00:05:00"}},
        {"time limit": Verdict.WARN},
        "without --time is too short",
    ),
    (
        "no limits at all",
        {"partition": {"MaxTime": "UNLIMITED", "DefaultTime": "NONE"}},
        {},
        "as long as it asks for",
    ),
    ("some minutes more", {"configuration": {"OverTimeLimit": "5 min"}}, {}, "OverTimeLimit=5 min"),
    ("the partition's own", {"partition": {"OverTimeLimit": "7"}}, {}, "OverTimeLimit=7"),
    (
        "preemption by quality of service, which is not known",
        {"configuration": {"PreemptType": "preempt/qos"}},
        {"grace": Verdict.UNKNOWN},
        "--qos NAME",
    ),
    (
        "preemption by quality of service, with the cluster's mode",
        {
            "configuration": {"PreemptType": "preempt/qos"},
            "partition": {"PreemptMode": "OFF", "GraceTime": "0"},
            "quality": {"Name": "scavenger", "PreemptMode": "cluster", "GraceTime": "00:05:00"},
        },
        {},
        "quality of service scavenger: GraceTime=300 s",
    ),
    (
        "preemption by quality of service, with a mode of its own",
        {
            "configuration": {"PreemptType": "preempt/qos"},
            "quality": {"Name": "scavenger", "PreemptMode": "cancel", "GraceTime": "00:05:00"},
        },
        {"when preempted": Verdict.WARN},
        "quality of service scavenger: PreemptMode=CANCEL",
    ),
    ("a job that may be requeued", {"job": {"restarts": 2}}, {}, "it has been 2 times"),
    (
        "a job that may not, with a grace time",
        {"job": {"requeue": False}},
        {"this job": Verdict.WARN},
        "scontrol update job=7 requeue=1",
    ),
    (
        "a job that may not, without",
        {"job": {"requeue": False}, "partition": {"GraceTime": "0"}},
        {"this job": Verdict.FAIL, "grace": Verdict.WARN},
        "ends it for good",
    ),
    (
        "a job that may not where nobody preempts",
        {"job": {"requeue": False}, "partition": {"GraceTime": "0", "PreemptMode": "OFF"}},
        {"this job": Verdict.WARN},
        "a node's failure ends it",
    ),
]


@pytest.mark.parametrize(("given", "expected", "words"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_what_a_setting_means(given: dict[str, Any], expected: dict[str, Verdict], words: str) -> None:
    """One change to the faultless cluster is told by the findings that it concerns, and by no other."""
    found = judge(**given)
    differing = {name: finding.verdict for name, finding in found.items() if finding.verdict is not Verdict.PASS}
    assert differing == expected
    concerned = [found[name] for name in expected] or list(found.values())
    assert any(words in f"{one.name}: {one.found} {one.means} {one.remedy}" for one in concerned)
    assert all(finding.remedy for finding in found.values() if finding.verdict in (Verdict.WARN, Verdict.FAIL))


def test_a_code_that_holds_is_not_one_that_requeues() -> None:
    """A code in both lists holds the job, so that it is no endless loop."""
    assert judge({"RequeueExit": "1,85", "RequeueExitHold": "1"})["exit codes"].verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("00:30:00", 1800.0),
        ("10:00", 600.0),
        ("1-12:00:00", 129600.0),
        ("2-00", 172800.0),
        ("UNLIMITED", None),
        ("NONE", None),
        ("", None),
    ],
)
def test_slurms_times(text: str, seconds: float | None) -> None:
    """As scontrol and sacctmgr print them."""
    assert preemption.seconds_of_time(text) == seconds


def test_a_refusal_is_quoted() -> None:
    """What sbatch would say is a warning, since the user's own options may be all that is missing."""
    assert checks.submission(None).verdict is Verdict.PASS
    refused = checks.submission("sbatch: allocation failure: Invalid account")
    assert refused.verdict is Verdict.WARN
    assert "Invalid account" in refused.found


def test_the_summary_is_one_line() -> None:
    """It counts, and says what it comes to."""
    passing, warning, failing = (Finding("a", verdict, "", "") for verdict in list(Verdict)[:3])
    assert summary([passing]) == "1 pass, 0 warn, 0 fail, 0 unknown: nothing speaks against surviving a preemption"
    assert "if the warnings are heeded" in summary([passing, warning])
    assert "for good" in summary([passing, warning, failing])
