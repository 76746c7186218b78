"""autoresume doctor on the one-machine cluster, with real Slurm: what it says is true."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_cluster.harness import ORDINARY_USER, Cluster, must_be_up, new_root, text_of, unavailable, wait_until
from tests.slurm_cluster.test_cluster import folder, is_alive

__all__ = ["folder"]  # a fixture

# Root's Python may be closed to others: everything is loaded before it becomes an ordinary user's process.
_AS_USER = """
import os, pwd, sys
import numpy, rich.console
import autoresume.cli.doctor
from autoresume.checks import software
from autoresume.cli import main
software.look()
user = pwd.getpwnam(sys.argv.pop(1))
os.setgroups([]); os.setgid(user.pw_gid); os.setuid(user.pw_uid)
main()
"""
_PROGRAM = [sys.executable, "-m", "autoresume"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Without a grace time, so that a preemption takes no time."""
    result = Cluster(new_root())
    must_be_up(result, "--nodes=2", "--grace=0", "--requeue-exit=85")
    yield result
    assert result("down").returncode == 0


def rows(output: str) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in map(json.loads, output.splitlines()) if "verdict" in row}


def doctor(cluster: Cluster, folder: Path, *options: str, user: str | None = None) -> dict[str, dict[str, str]]:
    program = [sys.executable, "-c", _AS_USER, user] if user else _PROGRAM
    done = cluster.run(*program, "doctor", "--json", "--state-size=1MB", f"--run-dir={folder}/runs", *options)
    found = rows(done.stdout)
    assert done.returncode == any(row["verdict"] == "fail" for row in found.values()), done.stderr
    return found


def test_what_it_says_of_the_cluster_is_true(cluster: Cluster, folder: Path) -> None:
    """Version, waits, exit code and process tracking are those that the cluster was started with."""
    found = doctor(cluster, folder)
    version = cluster.answer("scontrol", "--version").split()[1]
    assert found["Slurm"] == {**found["Slurm"], "verdict": "pass", "found": f"version {version}"}
    assert found["exit codes"]["found"] == "RequeueExit=85"
    assert found["kill wait"]["found"] == "KillWait=5 s"
    assert found["requeue delay"]["found"] == "5 s"
    tracking = json.loads((cluster.root / "plan.json").read_text())["proctrack"]
    assert tracking in found["processes"]["found"]
    assert found["when preempted"]["found"] == "partition low: PreemptMode=REQUEUE"
    assert found["grace"]["found"] == "partition low: GraceTime=0"
    assert found["grace"]["verdict"] == "warn"
    assert found["submission"]["verdict"] == "pass"
    assert "fail" not in {row["verdict"] for row in found.values()}


def test_a_partition_is_chosen(cluster: Cluster, folder: Path) -> None:
    """--partition judges another than the default; a wrong name is answered with the right ones."""
    assert doctor(cluster, folder, "--partition=high")["when preempted"]["means"] == "jobs here are not preempted"
    done = cluster.run(*_PROGRAM, "doctor", "--partition=hihg")
    assert done.returncode == 1
    assert "there are: low, high" in done.stderr


def test_a_user_who_is_not_root(cluster: Cluster, folder: Path) -> None:
    """Is told the same of Slurm, and may have no run directory in a folder of root's."""
    mine, roots = (doctor(cluster, folder, user=user) for user in (ORDINARY_USER, None))
    for name in ("Slurm", "requeue", "kill wait", "grace", "submission"):
        assert mine[name] == roots[name]
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    assert doctor(cluster, closed, user=ORDINARY_USER)["run directory"]["verdict"] == "fail"


def test_two_nodes_see_each_other(cluster: Cluster, folder: Path) -> None:
    """srun starts a player on each of two nodes; what they wrote is gone afterwards."""
    found = doctor(cluster, folder, "--two-nodes")["seen by two nodes"]
    assert found["verdict"] == "pass", found
    assert "node1" in found["found"]
    assert "node2" in found["found"]
    assert list(folder.iterdir()) == []


def test_a_job_that_it_calls_lost_is_lost(cluster: Cluster, folder: Path) -> None:
    """Inside of a job with --no-requeue and without a grace time it fails; and a preemption does end such a job."""
    command = " ".join([*_PROGRAM, "doctor", "--json", "--state-size=1MB", f"--run-dir={folder}/runs"])
    script = f"{command} >found; echo life >>lives; srun --overlap sleep 300"
    job = cluster.sbatch("--nodes=2", "--exclusive", "--no-requeue", script=script, cwd=folder)
    wait_until(lambda: text_of(folder / "lives") == "life\n", 60, lambda: text_of(folder / "log"))
    found = rows(text_of(folder / "found"))
    assert found["this job"]["verdict"] == "fail"
    assert f"job {job} (RUNNING) in partition low: --no-requeue" in found["this job"]["found"]
    assert found["seen by two nodes"]["verdict"] == "pass"

    cluster.answer("srun", "--partition=high", "--nodes=2", "--exclusive", "true")
    # Nothing else wants the nodes: a job that Slurm was to run again would be pending now, or running.
    described = cluster.answer("scontrol", "show", "job", job)
    assert "JobState=PREEMPTED" in described
    assert "Restarts=0" in described


def test_a_controller_that_is_down(cluster: Cluster, folder: Path) -> None:
    """Root and an ordinary user are told so within half a minute, and the rest of the machine is looked at all the same."""
    pid = cluster.pid("slurmctld")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), 30, lambda: "slurmctld does not end")
    environment = {**cluster.environment, "SLURM_CONF": str(cluster.root / "slurm.conf")}
    arguments = ["doctor", "--json", "--state-size=1MB", f"--run-dir={folder}/runs"]
    began = time.monotonic()
    try:
        running = [
            subprocess.Popen([*program, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
            for program in (_PROGRAM, [sys.executable, "-c", _AS_USER, ORDINARY_USER])
        ]
        outputs = [process.communicate(timeout=100)[0] for process in running]
        assert time.monotonic() - began < 30  # 7 s, but this machine may be busy
    finally:
        must_be_up(cluster)
    for process, output in zip(running, outputs):
        found = rows(output)
        assert process.returncode == 1
        assert "its controller does not answer" in found["Slurm"]["found"]
        assert found["durable writes"]["verdict"] == "pass"


def test_preemption_by_quality_of_service(folder: Path) -> None:
    """Where PreemptType=preempt/qos, the grace time and the mode are those that sacctmgr knows: of --qos, or of a job."""
    if not (shutil.which("slurmdbd") or os.environ.get("CI")):
        unavailable("slurmdbd is not installed")
    own = Cluster(new_root())
    try:
        must_be_up(own, "--nodes=1", "--accounting")
        own.answer("sacctmgr", "-i", "add", "qos", "scavenger", "PreemptMode=cancel", "GraceTime=45")
        own.answer("sacctmgr", "-i", "add", "account", "lab")
        own.answer("sacctmgr", "-i", "add", "user", "root", "account=lab", "qos=normal,scavenger")
        settings = own.root / "slurm.conf"
        settings.write_text(settings.read_text().replace("preempt/partition_prio", "preempt/qos"))
        own.answer("scontrol", "reconfigure")

        assert doctor(own, folder)["grace"]["verdict"] == "unknown"
        found = doctor(own, folder, "--qos=scavenger")
        assert found["grace"]["found"] == "quality of service scavenger: GraceTime=45 s"
        job = own.sbatch("--hold", "--qos=scavenger", script="true", cwd=folder)
        assert doctor(own, folder, f"--job={job}")["when preempted"] == found["when preempted"]
        assert "PreemptMode=CANCEL" in found["when preempted"]["found"]
        done = own.run(*_PROGRAM, "doctor", "--qos=scavanger")
        assert "there are: normal, scavenger" in done.stderr
    finally:
        assert own("down").returncode == 0


def test_the_ordinary_user_is_one() -> None:
    """Or the tests above would prove nothing."""
    assert pwd.getpwnam(ORDINARY_USER).pw_uid != 0
