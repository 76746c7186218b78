"""The one-machine cluster of slurm/, with real Slurm: each test is a promise of its README.

It needs root, and apt or the packages; without them the tests are skipped, but never in CI.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_cluster.harness import (
    ORDINARY_USER,
    SLURM,
    SYSTEM_PATH,
    Cluster,
    must_be_up,
    new_root,
    text_of,
    unavailable,
    wait_until,
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all users may write to; pytest's own are closed to them."""
    path = Path(tempfile.mkdtemp(prefix="jobs-", dir="/tmp"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Root's cluster, for all tests that do it no lasting harm."""
    result = Cluster(new_root())
    must_be_up(result, "--grace=3")
    yield result
    assert result("down").returncode == 0


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A cluster for one test, not up yet."""
    result = Cluster(new_root())
    yield result
    result("down")


def test_up_brings_four_idle_nodes(cluster: Cluster) -> None:
    """After `up` returns, every daemon runs and every node takes jobs; `status` says so and exits 0."""
    result = cluster("status")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"^(node\d)\s+idle$", result.stdout, re.MULTILINE) == ["node1", "node2", "node3", "node4"]
    daemons = re.findall(r"^(\S+)\s+\d+\s+running$", result.stdout, re.MULTILINE)
    assert daemons == ["munged", "slurmctld", *(f"slurmd-node{number}" for number in range(1, 5))]


def test_second_up_changes_nothing(cluster: Cluster) -> None:
    """`up` on a healthy cluster starts nothing and is quick, also when it is given its own options again."""
    before = cluster.pids()
    began = time.monotonic()
    assert "started nothing" in must_be_up(cluster)
    assert time.monotonic() - began < 5  # a fraction of a second, but this machine may be busy
    assert "started nothing" in must_be_up(cluster, "--grace=3", "--nodes=4", "--proctrack=auto")
    assert cluster.pids() == before


def test_other_options_are_refused(cluster: Cluster) -> None:
    """A running cluster does not silently ignore a new option."""
    result = cluster("up", "--grace=20")
    assert result.returncode == 1
    assert "has --grace 3, not 20" in result.stderr


def test_env_is_all_a_shell_needs(cluster: Cluster) -> None:
    """`eval "$(cluster env)"` lets a shell's clients find the cluster."""
    script = f'eval "$({cluster.program} env --dir={cluster.root})" && sinfo --noheader --format=%D --partition=low'
    assert cluster.answer("env", "--unset=SLURM_CONF", "sh", "-c", script).strip() == "4"


def test_srun_runs_on_every_node(cluster: Cluster) -> None:
    """A step over all nodes has tasks on each of them."""
    output = cluster.answer("srun", "--nodes=4", "--ntasks-per-node=2", "printenv", "SLURMD_NODENAME")
    assert sorted(output.split()) == sorted(["node1", "node2", "node3", "node4"] * 2)


def test_ordinary_users_have_jobs(cluster: Cluster, folder: Path) -> None:
    """Root's cluster serves every user, and the job runs as that user."""
    script = "srun --ntasks=2 id --user --name"
    cluster.sbatch("--nodes=2", script=script, cwd=folder, user=ORDINARY_USER)
    log = folder / "log"
    wait_until(lambda: text_of(log).count("\n") >= 2, 30, lambda: text_of(log))
    assert log.read_text().split() == [ORDINARY_USER] * 2
    assert log.owner() == ORDINARY_USER


def test_high_preempts_low_which_lives_again(cluster: Cluster, folder: Path) -> None:
    """A job of `high` takes the nodes of a job of `low`, which is requeued and starts a second time."""
    script = 'echo "life ${SLURM_RESTART_COUNT:-0}"; test -n "$SLURM_RESTART_COUNT" || exec sleep 300'
    low = cluster.sbatch("--nodes=4", "--exclusive", script=script, cwd=folder)
    log = folder / "log"
    wait_until(lambda: "life 0" in text_of(log), 30, lambda: text_of(log))

    cluster.answer("srun", "--partition=high", "--nodes=4", "--exclusive", "true")
    wait_until(lambda: "life 1" in text_of(log), 60, lambda: text_of(log) + cluster.answer("squeue"))
    assert "DUE TO PREEMPTION" in log.read_text()
    assert "Restarts=1" in cluster.answer("scontrol", "show", "job", low)


def test_up_heals_a_killed_slurmd(cluster: Cluster) -> None:
    """`status` tells of a dead daemon, and `up` restarts it and nothing else."""
    before = cluster.pids()
    os.kill(before["slurmd-node2"], signal.SIGKILL)
    wait_until(lambda: cluster("status").returncode == 1, 10, lambda: "status says all is up")
    assert re.search(r"^slurmd-node2\s+-\s+dead$", cluster("status").stdout, re.MULTILINE)

    assert "started slurmd-node2;" in must_be_up(cluster)
    after = cluster.pids()
    assert {name for name in after if after[name] != before[name]} == {"slurmd-node2"}
    assert cluster("status").returncode == 0
    assert cluster.answer("srun", "--nodelist=node2", "printenv", "SLURMD_NODENAME").strip() == "node2"


def test_down_is_refused_inside_a_job(cluster: Cluster) -> None:
    """A job can't take down what it runs on and be killed halfway."""
    result = cluster.run("srun", str(cluster.program), "down", f"--dir={cluster.root}")
    assert result.returncode == 1
    assert "leave it first" in result.stderr
    assert cluster("status").returncode == 0


def test_clusters_do_not_disturb_each_other(cluster: Cluster, own_cluster: Cluster, folder: Path) -> None:
    """Another cluster of the same user can come and go while a job runs in this one."""
    job = cluster.sbatch("--nodes=4", script="srun sleep 300", cwd=folder)
    state_of_step = ["squeue", f"--steps={job}.0", "--noheader", "--format=%N"]
    wait_until(lambda: cluster.answer(*state_of_step).strip() == "node[1-4]", 30, lambda: cluster.answer("squeue"))
    try:
        must_be_up(own_cluster)
        own_cluster.answer("srun", "--nodes=4", "true")
        assert own_cluster("down").returncode == 0
        assert cluster.answer(*state_of_step).strip() == "node[1-4]"
        assert cluster.answer("srun", "--nodes=4", "--overlap", f"--jobid={job}", "true") == ""
        assert cluster("status").returncode == 0
    finally:
        cluster.answer("scancel", job)


def test_down_leaves_nothing(own_cluster: Cluster, folder: Path) -> None:
    """No process (be it a job's stray child), no file, no control group, no trace in /etc survives `down`."""
    before = configuration_of_this_machine()
    must_be_up(own_cluster, "--nodes=2")
    stray = folder / "stray"
    script = f"setsid sleep 300 & echo $! >{stray}; srun sleep 300"
    job = own_cluster.sbatch("--nodes=2", script=script, cwd=folder, user=ORDINARY_USER)

    def job_is_whole() -> bool:
        return bool(text_of(stray)) and f"{job}.0" in own_cluster.answer("squeue", "--steps", "--format=%i")

    wait_until(job_is_whole, 30, lambda: own_cluster.answer("squeue"))
    pids = {*own_cluster.pids().values(), int(stray.read_text()), *of_cluster(own_cluster)}

    result = own_cluster("down")
    assert result.returncode == 0, result.stderr
    assert not own_cluster.root.exists()
    assert [pid for pid in pids if is_alive(pid)] == []
    assert of_cluster(own_cluster) == []
    assert list(Path("/sys/fs/cgroup").glob(f"**/job_{job}")) == []
    assert configuration_of_this_machine() == before

    assert own_cluster("down").returncode == 0  # and again: nothing to do is no failure
    assert own_cluster("status").returncode == 1
    assert own_cluster("env").returncode == 1


def test_an_ordinary_user_has_a_whole_cluster(folder: Path) -> None:
    """Without root all of it works but control groups; GPUs can be pretended; the options reach Slurm."""
    program = shutil.copytree(SLURM, folder / "slurm") / "cluster"  # this checkout may lie in root's home
    cluster = Cluster(new_root(), user=ORDINARY_USER, program=program)
    options = ["--nodes=2", "--cpus=3", "--gpus=2", "--grace=7", "--requeue-exit=85", "--preempt-send-user-signal"]
    try:
        assert "proctrack/linuxproc" in must_be_up(cluster, *options)
        srun = ["srun", "--nodes=2", "--ntasks-per-node=3", "--gpus-per-node=2"]
        output = cluster.answer(*srun, "printenv", "CUDA_VISIBLE_DEVICES", user=ORDINARY_USER)
        assert output.split() == ["0,1"] * 6
        configuration = cluster.answer("scontrol", "show", "config", user=ORDINARY_USER)
        assert re.search(r"^RequeueExit\s+= 85$", configuration, re.MULTILINE)
        assert re.search(r"^SlurmctldParameters\s+= preempt_send_user_signal$", configuration, re.MULTILINE)
        partition = cluster.answer("scontrol", "show", "partition", "low", user=ORDINARY_USER)
        assert re.search(r"\bGraceTime=7\b", partition)
    finally:
        assert cluster("down").returncode == 0
    assert not cluster.root.exists()


def test_accounting_makes_sacct_work(own_cluster: Cluster) -> None:
    """With `--accounting`, sacct knows a finished job."""
    if not (shutil.which("slurmdbd", path=SYSTEM_PATH) or os.environ.get("CI")):
        unavailable("slurmdbd is not installed, and would take most of this file's time")
    must_be_up(own_cluster, "--accounting", "--nodes=1")
    own_cluster.answer("srun", "true")
    sacct = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=State"]
    wait_until(
        lambda: own_cluster.answer(*sacct).split() == ["COMPLETED"], 30, lambda: own_cluster.answer("sacct", "--long")
    )


def test_a_daemon_that_does_not_start_shows_its_log(own_cluster: Cluster) -> None:
    """When `up` fails it names the log, and quotes the end of it."""
    must_be_up(own_cluster, "--nodes=1")
    os.kill(own_cluster.pid("slurmctld"), signal.SIGKILL)
    with (own_cluster.root / "slurm.conf").open("a") as configuration:
        configuration.write("NoSuchKey=1\n")

    result = own_cluster("up")
    assert result.returncode == 1
    assert str(own_cluster.root / "log" / "slurmctld.stderr") in result.stderr
    assert "NoSuchKey" in result.stderr


def test_a_directory_of_somebody_else_is_left_alone(folder: Path) -> None:
    """Neither `up` nor `down` touches a directory that holds something else."""
    root = folder / "work"
    root.mkdir()
    (root / "thesis").write_text("years")
    for command in ("up", "down"):
        result = Cluster(root)(command)
        assert result.returncode == 1
        assert "not empty" in result.stderr
    assert [path.name for path in root.iterdir()] == ["thesis"]


def configuration_of_this_machine() -> dict[str, float]:
    """What a Slurm set up by hand would have changed."""
    roots = [Path("/etc/hosts"), Path("/etc/slurm"), Path("/etc/munge"), Path("/etc/passwd"), Path("/var/spool")]
    return {str(path): path.stat().st_mtime for root in roots for path in (root, *root.glob("**/*")) if path.exists()}


def is_alive(pid: int) -> bool:
    status = text_of_process(pid, "stat")
    return bool(status) and status.rpartition(")")[2].split()[0] not in "ZX"


def of_cluster(cluster: Cluster) -> list[int]:
    """Living processes that were started with the cluster's configuration, daemons and jobs alike."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    marker = f"SLURM_CONF={cluster.root}/"
    return [pid for pid in pids if marker in text_of_process(pid, "environ") and is_alive(pid)]


def text_of_process(pid: int, name: str) -> str:
    """Empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""
