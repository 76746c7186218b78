"""The daemons: their commands, when each is ready, and starting those that do not run.

Each runs in the foreground (of its own session), so its pid is known without pid files, its death
is seen at once, and what it says before it has opened its log is not lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from one_machine import processes
from one_machine.errors import ClusterError
from one_machine.layout import Layout
from one_machine.packages import program, search_path
from one_machine.plan import Plan
from one_machine.processes import Process

READY_SECONDS = 60


@dataclass(frozen=True)
class Daemon:
    """One daemon; its standard output and error go to `output`."""

    name: str
    command: tuple[str, ...]
    output: Path
    ready: Callable[[], bool]


def stages(plan: Plan, layout: Layout) -> Iterator[list[Daemon]]:
    """In the order of starting: each stage needs the earlier ones to be ready."""
    first = [munged(layout)]
    if plan.options.accounting:
        yield [*first, mariadbd(plan, layout)]
        yield [slurmdbd(plan, layout)]
    else:
        yield first
    yield [slurmctld(plan, layout)]
    yield [slurmd(node, port, layout) for node, port in plan.node_ports.items()]


def munged(layout: Layout) -> Daemon:
    directory = layout.munge_socket.parent
    command = (
        program("munged"),
        "--foreground",
        "--force",
        f"--socket={layout.munge_socket}",
        f"--key-file={layout.munge_key}",
        f"--pid-file={directory}/pid",
        f"--seed-file={directory}/seed",
        f"--log-file={directory}/log",
        "--origin=127.0.0.1",
    )
    ready = partial(listens_at, layout.munge_socket)
    return Daemon("munged", command, layout.log("munged"), ready)


def mariadbd(plan: Plan, layout: Layout) -> Daemon:
    command = (
        program("mariadbd"),
        "--no-defaults",
        f"--user={plan.user}",
        f"--datadir={layout.database}/data",
        f"--tmpdir={layout.database}",
        f"--socket={layout.database_socket}",
        f"--pid-file={layout.database}/pid",
        # Its only guard is the closed directory of its socket.
        "--skip-networking",
        # The default log of 96 MiB is much for a directory that may lie in memory.
        "--innodb-log-file-size=8M",
        "--innodb-flush-log-at-trx-commit=2",
    )
    ready = partial(listens_at, layout.database_socket)
    return Daemon("mariadbd", command, layout.log("mariadbd"), ready)


def slurmdbd(plan: Plan, layout: Layout) -> Daemon:
    return slurm_daemon("slurmdbd", ("slurmdbd", "-D"), plan.database_port, layout)


def slurmctld(plan: Plan, layout: Layout) -> Daemon:
    command = ("slurmctld", "-D", "-f", str(layout.slurm_conf))
    return slurm_daemon("slurmctld", command, plan.controller_port, layout)


def slurmd(node: str, port: int, layout: Layout) -> Daemon:
    command = ("slurmd", "-D", "-f", str(layout.slurm_conf), "-N", node)
    return slurm_daemon(f"slurmd-{node}", command, port, layout)


def slurm_daemon(name: str, command: tuple[str, ...], port: int, layout: Layout) -> Daemon:
    # Slurm's daemons repeat on standard error, without the time, what they write to their log.
    output = layout.output(name)
    return Daemon(name, (program(command[0]), *command[1:]), output, partial(listens_on, port))


def environment(layout: Layout) -> dict[str, str]:
    """Nothing of the caller's, who may sit inside a job or use another cluster."""
    return {
        "PATH": search_path(),
        "SLURM_CONF": str(layout.slurm_conf),
        "MYSQL_UNIX_PORT": str(layout.database_socket),
    }


def running(daemon: str, layout: Layout) -> Process | None:
    """The living process of this daemon."""
    try:
        pid, started = map(int, layout.pid(daemon).read_text().split())
    except (FileNotFoundError, ValueError):
        return None
    process = Process(pid, started)
    return process if process.alive() else None


def recorded(layout: Layout) -> list[Process]:
    """The living ones of all daemons that were ever started here."""
    names = (path.name for path in layout.pids.glob("*"))
    return [process for name in names if (process := running(name, layout))]


def start(stage: list[Daemon], layout: Layout) -> list[str]:
    """Start those that do not run, wait until they are ready; return their names."""
    dead = [daemon for daemon in stage if running(daemon.name, layout) is None]
    for daemon in dead:
        process = processes.spawn(daemon.command, daemon.output, environment(layout))
        layout.pid(daemon.name).write_text(f"{process.pid} {process.started}\n")
    for daemon in dead:
        wait_ready(daemon, layout)
    return [daemon.name for daemon in dead]


def wait_ready(daemon: Daemon, layout: Layout) -> None:
    def settled() -> bool:
        return running(daemon.name, layout) is None or daemon.ready()

    in_time = processes.wait_until(settled, READY_SECONDS)
    if running(daemon.name, layout) is None:
        raise failure(f"{daemon.name} ended while starting", daemon.output)
    if not in_time:
        raise failure(f"{daemon.name} is not ready after {READY_SECONDS} s", daemon.output)


def failure(what: str, log: Path) -> ClusterError:
    return ClusterError(f"{what}; the end of {log}:\n{processes.tail(log)}")


# Looked up, not tried: the daemons complain in their logs of connections that say nothing.


def listens_at(path: Path) -> bool:
    """Does anybody accept connections at this Unix socket?"""
    accepting = "00010000"
    rows = (row.split() for row in rows_of("/proc/net/unix"))
    return any(row[3] == accepting and row[-1] == str(path) for row in rows)


def listens_on(port: int) -> bool:
    """Does anybody accept connections on this TCP port?"""
    accepting = "0A"
    rows = (row.split() for table in ("tcp", "tcp6") for row in rows_of(f"/proc/net/{table}"))
    return any(row[3] == accepting and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def rows_of(table: str) -> list[str]:
    try:
        return Path(table).read_text().splitlines()[1:]
    except FileNotFoundError:  # a kernel without IPv6 has no tcp6
        return []
