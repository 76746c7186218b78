"""Jobs on a real cluster: submitted, disturbed, and compared with a run that was left in peace."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests import warm
from tests.slurm_cluster.harness import Cluster, wait_until

HERE = Path(__file__).parent
SCRIPT = HERE / "train.py"
STEPS = 60
PATIENCE_SECONDS = 150.0


@dataclass
class Job:
    """A run's directory, and the job that trains it."""

    cluster: Cluster
    run: Path
    id: str = ""
    prefix: tuple[str, ...] = (sys.executable,)
    """How Python is started, and as whom."""

    def cli(self, *words: str, check: bool = True) -> str:
        """A command of autoresume, with this cluster's Slurm."""
        done = self.cluster.run(*self.prefix, "-m", "autoresume", *words, cwd=self.run.parent)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, *options: str, hold: int = 12, script: Path = SCRIPT, cold: bool = False, **variables: str) -> Job:
        """Ranks are forked from their launcher; if it is to be `cold`, they are started as anybody's are."""
        variables = {"HOLD": str(hold), "OMP_NUM_THREADS": "1", **variables}
        if not cold and self.prefix == (sys.executable,):
            variables["PYTHONPATH"] = warm.SITE
        env = [f"--env={name}={value}" for name, value in variables.items()]
        said = self.cli("sbatch", "--json", f"--run-dir={self.run}", *options, *env, str(script))
        self.id = json.loads(said.splitlines()[0])["job"]
        return self

    # -- waiting ----------------------------------------------------------------------------------

    def _wait(self, look: Any, what: str, seconds: float = PATIENCE_SECONDS) -> Any:
        wait_until(look, seconds, lambda: f"{what}\n{self.describe()}")
        return look()

    def until_held(self) -> Job:
        """It trains, and steps slowly from now on."""
        self._wait((self.run / "held").exists, "the training to come to its slow part")
        return self

    def until_life(self, number: int) -> None:
        self._wait(lambda: len(self.lives()) >= number, f"life {number}")

    def until_finished(self) -> None:
        self._wait(lambda: self.hows()[-1:] == ["finished"], "the end of the run")

    def until_over(self) -> str:
        """The job's last state in Slurm's words."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")
        self._wait(lambda: self.state() in ended, "the end of the job")
        return self.state()

    def until_saved(self) -> None:
        """slurmctld has this job as it is now on its disk: it writes its state seconds later, and forgets the rest
        when it is killed."""
        mark = f"as-of-{time.monotonic_ns()}"
        self.cluster.answer("scontrol", "update", f"JobId={self.id}", f"Comment={mark}")
        state = self.cluster.root / "state" / "job_state"
        self._wait(lambda: mark.encode() in state.read_bytes(), "slurmctld to save its state")

    # -- looking ----------------------------------------------------------------------------------

    def show(self) -> str:
        return self.cluster.answer("scontrol", "-o", "show", "job", self.id)

    def field(self, name: str) -> str:
        words = [word for word in self.show().split() if word.startswith(f"{name}=")]
        return words[0].partition("=")[2]

    def nodes(self) -> list[str]:
        """The job's nodes, in order."""
        return self.cluster.answer("scontrol", "show", "hostnames", self.field("NodeList")).split()

    def state(self) -> str:
        return self.field("JobState")

    def lives(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.run / "incarnations").glob("*.json")):
            try:
                found.append(json.loads(path.read_text()))
            except (OSError, ValueError):
                continue
        return found

    def hows(self) -> list[str | None]:
        return [(life["ended"] or {}).get("how") for life in self.lives()]

    def causes(self) -> list[str | None]:
        return [(life["ended"] or {}).get("cause") for life in self.lives()]

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((self.run / "logs").glob("*")))

    def describe(self) -> str:
        ends = [(life["began"].get("step"), life["ended"]) for life in self.lives()]
        queue = self.cluster.run("squeue", "--all", "-o", "%i %P %T %r %N").stdout
        return f"{ends}\n{queue}\n{self.log()[-6000:]}"

    def processes(self, node: str) -> list[psutil.Process]:
        """All of the job's processes on a node."""
        return [process for process in of_job(self.id) if process.environ().get("SLURMD_NODENAME") == node]

    def ranks(self, node: str) -> list[psutil.Process]:
        """The training's processes on a node."""
        found = [(process, process.cmdline()) for process in self.processes(node)]
        return [process for process, words in found if str(SCRIPT) in words and "-m" not in words]

    def kill_node(self, node: str) -> None:
        """The node is gone, with all its processes. `cluster("up")` heals it."""
        ranks = self.ranks(node)
        os.kill(self.cluster.pid(f"slurmd-{node}"), signal.SIGKILL)
        for process in [*ranks, *(parent for rank in ranks for parent in rank.parents() if self._owns(parent))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _owns(self, process: psutil.Process) -> bool:
        """A process of the job, or Slurm's own of its step."""
        try:
            return f"[{self.id}." in " ".join(process.cmdline()) or process.environ().get("SLURM_JOB_ID") == self.id
        except psutil.Error:
            return False

    # -- disturbing -------------------------------------------------------------------------------

    def preempt(self, *where: str) -> None:
        """A job of the higher partition takes all nodes, or those that `where` says."""
        where = where or ("--nodes=4",)
        self.cluster.sbatch("--partition=high", *where, "--exclusive", script="sleep 1", cwd=self.run.parent)

    def close(self) -> None:
        self.cluster.run("scontrol", "update", f"job={self.id}", "requeue=0")
        self.cluster.run("scancel", self.id)
        wait_until(lambda: not of_job(self.id), 60, lambda: f"job {self.id} does not end")


def of_job(job: str) -> list[psutil.Process]:
    """All living processes of a job."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_JOB_ID") == job and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def reference(folder: Path, ranks: int) -> None:
    """A run of so many ranks that nobody disturbs, in the folder `calm-<ranks>`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "AUTORESUME_"))}
    environment |= {"AUTORESUME_RUN_DIR": str(folder / f"calm-{ranks}"), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, str(SCRIPT)]
    if ranks > 1:
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d",
                  "--rdzv-endpoint=localhost:0", str(SCRIPT)]  # fmt: skip
    done = warm.run(launch, env=environment, capture_output=True, text=True, timeout=200, cwd=folder)
    assert done.returncode == 0, done.stderr


def metrics(run: Path) -> dict[int, Any]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1)), "each step exactly once"
    return {record["step"]: record["values"] for record in records}


def final_files(run: Path) -> dict[str, bytes]:
    """The tensor files of the last checkpoint: weights, optimizer and all generators of each rank."""
    (last,) = run.glob(f"checkpoints/*_U{STEPS}_*")
    assert (last / "manifest.json").exists()
    return {path.name: path.read_bytes() for path in sorted((last / "shards").iterdir())}


def assert_same(run: Path, calm: Path) -> None:
    """Losses of all steps and the final tensors, bit for bit."""
    assert metrics(run) == metrics(calm)
    assert final_files(run) == final_files(calm)
