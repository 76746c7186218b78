"""The one-machine cluster of slurm/ as tests use it: its commands, and Slurm's clients on it.

Law: a cluster that can't be had skips a test, but never in CI. Nothing sleeps to let something happen.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[2] / "slurm"
ORDINARY_USER = "nobody"
# Only what any user may read and run: root's Python may lie in root's home.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Cluster:
    """One state directory, the commands on it, and Slurm's clients using it."""

    def __init__(self, root: Path, *, user: str | None = None, program: Path = SLURM / "cluster"):
        self.root = root
        self.user = user
        self.program = program
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "AUTORESUME_", "XDG_"))
        }

    def __call__(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.program), command, f"--dir={self.root}", *options, user=self.user)

    def run(
        self, *command: str, user: str | None = None, cwd: Path | None = None, timeout: float = 150
    ) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, "SLURM_CONF": str(self.root / "slurm.conf")}
        if user:
            command = ("runuser", "-u", user, "--", *command)
            environment["PATH"] = SYSTEM_PATH
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=environment, cwd=cwd or "/"
        )

    def answer(self, *command: str, user: str | None = None, cwd: Path | None = None) -> str:
        """What a command says that must succeed."""
        result = self.run(*command, user=user, cwd=cwd)
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    def sbatch(self, *options: str, script: str, cwd: Path, user: str | None = None) -> str:
        """Submit a shell script that logs to the file `log` in `cwd`; return the job's id."""
        command = ["sbatch", "--parsable", "--output=log", "--open-mode=append", *options, f"--wrap={script}"]
        return self.answer(*command, cwd=cwd, user=user).strip()

    def pid(self, daemon: str) -> int:
        return int((self.root / "pid" / daemon).read_text().split()[0])

    def pids(self) -> dict[str, int]:
        return {path.name: self.pid(path.name) for path in (self.root / "pid").iterdir()}


def unavailable(reason: str) -> None:
    """CI must never be green because its cluster was missing."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def must_be_up(cluster: Cluster, *options: str) -> str:
    result = cluster("up", *options)
    if result.returncode == 3:
        unavailable(f"no Slurm here: {result.stderr}")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def wait_until(condition: Callable[[], bool], seconds: float, complaint: Callable[[], str]) -> None:
    """Look again and again. A look that asks Slurm takes time itself: there are longer pauses between those."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < deadline, f"not within {seconds} s: {complaint()}"
        time.sleep(min(1.0, max(0.05, 5 * (now - began))))


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def new_root() -> Path:
    """Short enough for sockets, and not there yet."""
    if os.getuid() != 0:
        unavailable("not root")
    root = Path(tempfile.mkdtemp(prefix="cluster-", dir="/tmp"))
    root.rmdir()
    return root
