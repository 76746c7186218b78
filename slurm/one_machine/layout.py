"""The state directory: every path in it is built here, and nothing is written outside it.

It is the only trace of a cluster besides its processes and its cgroups, so removing it (and
those) removes the cluster. `plan.json` marks the directory as ours: without it, it is never
written to nor removed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from one_machine.errors import ClusterError

# A Unix socket's path has at most 107 bytes; the longest one in here is
# spool/nodeNN/nodeNN_JOBID.STEPID, and a step id may have ten digits.
LONGEST_ROOT = 64


@dataclass(frozen=True)
class Layout:
    """Paths of one cluster."""

    root: Path

    def __post_init__(self) -> None:
        if len(os.fsencode(self.root)) > LONGEST_ROOT:
            raise ClusterError(
                f"{self.root} is too long for the sockets inside it: at most {LONGEST_ROOT}"
                " bytes; choose a shorter --dir"
            )

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def slurm_conf(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def cgroup_conf(self) -> Path:
        return self.root / "cgroup.conf"

    @property
    def gres_conf(self) -> Path:
        return self.root / "gres.conf"

    @property
    def slurmdbd_conf(self) -> Path:
        return self.root / "slurmdbd.conf"

    @property
    def munge_key(self) -> Path:
        return self.root / "munge" / "key"

    @property
    def munge_socket(self) -> Path:
        return self.root / "munge" / "socket"

    @property
    def gpus(self) -> Path:
        return self.root / "gpu"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def database(self) -> Path:
        return self.root / "database"

    @property
    def database_socket(self) -> Path:
        return self.database / "socket"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def pids(self) -> Path:
        return self.root / "pid"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def output(self, name: str) -> Path:
        return self.logs / f"{name}.stderr"

    def pid(self, name: str) -> Path:
        return self.pids / name


def default_root() -> Path:
    """Per user. Root's lies in /tmp: its runtime directory is closed to the users of its cluster."""
    user_id = os.getuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(runtime if runtime and user_id != 0 else "/tmp")  # noqa: S108 - its owner is checked before use
    return parent / f"autoresume-cluster-{user_id}"
