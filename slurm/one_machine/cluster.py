"""The four commands. Each is safe to repeat."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from one_machine import cgroups, clients, daemons, jobs, packages, plan, processes, state_directory
from one_machine.daemons import Daemon
from one_machine.errors import ClusterError
from one_machine.layout import Layout
from one_machine.options import FLAGS, Options
from one_machine.plan import Plan

NODES_SECONDS = 60
DOWN_SECONDS = 30


def up(layout: Layout, chosen: dict[str, Any]) -> None:
    began = time.monotonic()
    check_network()
    os.umask(0o022)  # the configuration is for all users, whatever the caller's habits
    with state_directory.locked(layout.root):
        decided = plan.load(layout.plan)
        if decided is None:
            decided = decide(layout, Options(**chosen))
            state_directory.write(layout.plan, plan.to_text(decided))
        else:
            check_unchanged(decided, chosen, layout)
        packages.ensure(decided.options.accounting)
        state_directory.fill(decided, layout)
        started = [name for stage in daemons.stages(decided, layout) for name in daemons.start(stage, layout)]
        states = wait_for_nodes(decided, layout)
    report(decided, layout, started, states, time.monotonic() - began)


def decide(layout: Layout, options: Options) -> Plan:
    state_directory.check_claimable(layout)
    packages.ensure(options.accounting)
    plugin = cgroups.usable_plugin() if options.proctrack != "linuxproc" else None
    if options.proctrack == "cgroup" and plugin is None:
        raise ClusterError(
            "no control groups that Slurm could use here: that needs root and a writable"
            f" {cgroups.MOUNTPOINT}; leave --proctrack out"
        )
    return plan.decide(options, "cgroup" if plugin else "linuxproc", plugin)


def check_unchanged(decided: Plan, chosen: dict[str, Any], layout: Layout) -> None:
    """A cluster keeps its options, and ignoring a new one silently would be a trap."""
    current = {**asdict(decided.options), "proctrack": decided.proctrack}
    for field, value in chosen.items():
        if value not in (current[field], "auto"):
            raise ClusterError(
                f"the cluster in {layout.root} has {FLAGS[field]} {current[field]}, not {value}:"
                " take it down first, or leave the option out"
            )


def check_network() -> None:
    """Slurm resolves even 127.0.0.1 in a way that fails where there is no other address."""
    try:
        socket.getaddrinfo(None, 1, socket.AF_INET, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        raise ClusterError(
            "Slurm needs an IPv4 address besides 127.0.0.1, and this machine has none; a second"
            " one of the loopback is enough: ip address add 127.0.0.2/8 dev lo"
        ) from error


def wait_for_nodes(decided: Plan, layout: Layout) -> dict[str, str]:
    states: dict[str, str] = {}

    def settled() -> bool:
        states.update(clients.node_states(decided, layout))
        return all(map(clients.alive, states.values())) or bool(dead_daemons(decided, layout))

    in_time = processes.wait_until(settled, NODES_SECONDS)
    for daemon in dead_daemons(decided, layout):
        raise daemons.failure(f"{daemon.name} ended while starting", daemon.output)
    if not in_time:
        node = next(node for node, state in states.items() if not clients.alive(state))
        raise daemons.failure(f"{node} is {states[node]} after {NODES_SECONDS} s", layout.log(f"slurmd-{node}"))
    return states


def dead_daemons(decided: Plan, layout: Layout) -> list[Daemon]:
    return [
        daemon
        for stage in daemons.stages(decided, layout)
        for daemon in stage
        if daemons.running(daemon.name, layout) is None
    ]


def report(decided: Plan, layout: Layout, started: list[str], states: dict[str, str], seconds: float) -> None:
    print(
        f"up in {seconds:.1f} s: {len(states)} nodes, proctrack/{decided.proctrack},"
        f" started {', '.join(started) or 'nothing'}; state directory {layout.root}"
    )
    for node, state in states.items():
        if state in clients.DRAINED:
            print(f"{node} is {state}: scontrol update nodename={node} state=resume")
    closed = state_directory.closed_parent(layout) if os.getuid() == 0 else None
    if closed:
        print(f"only root can use it, as other users can't pass {closed}")


def down(layout: Layout) -> None:
    if not layout.root.exists():
        print(f"nothing to take down in {layout.root}")
        return
    with state_directory.locked(layout.root):
        decided = plan.load(layout.plan)
        if decided is None:
            state_directory.check_claimable(layout)  # an empty one goes by itself
            return
        check_outside(decided)
        stop(decided, layout)
        cgroups.remove(decided)
        shutil.rmtree(layout.root)
    print(f"down; {layout.root} removed")


def check_outside(decided: Plan) -> None:
    """From inside one of its jobs, `down` would kill itself halfway."""
    if os.environ.get("SLURM_CLUSTER_NAME") == decided.name:
        raise ClusterError(f"this is job {os.environ.get('SLURM_JOB_ID')} of that cluster; leave it first")


def stop(decided: Plan, layout: Layout) -> None:
    """Everything is killed outright: what an orderly end would save is about to be removed."""

    def gone() -> bool:
        # Daemons first, or they would start what is being killed anew.
        alive = daemons.recorded(layout) or jobs.processes_of(decided, layout)
        for process in alive:
            process.kill()
        cgroups.thaw(decided)
        return not alive

    if not processes.wait_until(gone, DOWN_SECONDS):
        left = [*daemons.recorded(layout), *jobs.processes_of(decided, layout)]
        pids = " ".join(str(process.pid) for process in left)
        raise ClusterError(f"still alive {DOWN_SECONDS} s after SIGKILL: {pids}")


def status(layout: Layout) -> bool:
    """Print the table; True if all is up."""
    decided = existing(layout)
    all_up = True
    print(f"{'DAEMON':<16} {'PID':>8}  STATE")
    for stage in daemons.stages(decided, layout):
        for daemon in stage:
            process = daemons.running(daemon.name, layout)
            all_up = all_up and process is not None
            pid, state = (process.pid, "running") if process else ("-", "dead")
            print(f"{daemon.name:<16} {pid:>8}  {state}")
    print(f"\n{'NODE':<25}  STATE")
    for node, state in clients.node_states(decided, layout).items():
        all_up = all_up and clients.serves(state)
        print(f"{node:<25}  {state}")
    return all_up


def env(layout: Layout) -> None:
    """Print lines for a shell's eval."""
    existing(layout)
    print(f"export SLURM_CONF={shlex.quote(str(layout.slurm_conf))}")
    print(f"export PATH={shlex.quote(with_clients(os.environ.get('PATH', '')))}")


def with_clients(path: str) -> str:
    """PATH with the clients' directory, behind all others so that it hides nothing."""
    directory = str(Path(packages.program("sinfo")).parent)
    parts = [part for part in path.split(":") if part]
    return ":".join(parts if directory in parts else [*parts, directory])


def existing(layout: Layout) -> Plan:
    decided = plan.load(layout.plan)
    if decided is None:
        raise ClusterError(f"no cluster in {layout.root}")
    return decided
