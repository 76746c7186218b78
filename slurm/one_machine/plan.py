"""A cluster as decided: the options plus what was found out about this machine, once.

Ports, names and job ids follow from the *slot*, a range of ports that was free. Two clusters that
live at the same time thus differ in all of them: in cgroup v1 Slurm names a job's control group
by node and job id only, and with equal ids one cluster's `scancel` would kill the other's job.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from one_machine.errors import ClusterError
from one_machine.options import Options

# Below the ephemeral range of Linux (from 32768), whose ports any program may hold for a moment.
FIRST_PORT = 10000
SLOTS = 200
PORTS_PER_SLOT = 50
JOBS_PER_SLOT = 1000


@dataclass(frozen=True)
class Plan:
    """Everything that the configuration and the daemons depend on."""

    options: Options
    user: str
    host: str
    name: str
    slot: int
    proctrack: str
    cgroup_plugin: str | None

    @property
    def nodes(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.options.nodes + 1)]

    @property
    def nodes_expression(self) -> str:
        return f"node[1-{self.options.nodes}]"

    @property
    def controller_port(self) -> int:
        return FIRST_PORT + self.slot * PORTS_PER_SLOT

    @property
    def database_port(self) -> int:
        return self.controller_port + 1

    @property
    def node_ports(self) -> dict[str, int]:
        return {node: self.controller_port + 2 + i for i, node in enumerate(self.nodes)}

    @property
    def first_job_id(self) -> int:
        return self.slot * JOBS_PER_SLOT + 1

    def owns_job(self, job_id: int) -> bool:
        return self.first_job_id <= job_id < self.first_job_id + JOBS_PER_SLOT


def decide(options: Options, proctrack: str, cgroup_plugin: str | None) -> Plan:
    return Plan(
        options=options,
        user=pwd.getpwuid(os.getuid()).pw_name,
        host=socket.gethostname().partition(".")[0],  # what Slurm takes for this host's name
        name=f"one_machine_{secrets.token_hex(4)}",
        slot=free_slot(options.nodes + 2),
        proctrack=proctrack,
        cgroup_plugin=cgroup_plugin,
    )


def free_slot(ports: int) -> int:
    """At random, so that clusters started at the same moment do not choose the same."""
    for slot in random.sample(range(SLOTS), SLOTS):
        first = FIRST_PORT + slot * PORTS_PER_SLOT
        if all(is_free(port) for port in range(first, first + ports)):
            return slot
    raise ClusterError(f"no {ports} free ports in a row between {FIRST_PORT} and {FIRST_PORT + SLOTS * PORTS_PER_SLOT}")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Slurm does; it only overlooks connections that are closing, not other listeners.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def to_text(plan: Plan) -> str:
    return json.dumps(asdict(plan), indent=2) + "\n"


def load(path: Path) -> Plan | None:
    """The plan of an existing cluster; None if there is no cluster."""
    try:
        values = json.loads(path.read_text())
        return Plan(**{**values, "options": Options(**values["options"])})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{path} is damaged or of another version: {error}") from error
