"""autoresume doctor: whether a preemption would be survived, before anything is submitted."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path

import click

from autoresume.base.findings import Finding, Verdict, summary
from autoresume.checks import filesystem, folder, meeting, memory, saving, script, software
from autoresume.checks.folder import Writing
from autoresume.cli.canary import send
from autoresume.cli.common import bytes_of, emit
from autoresume.config import options
from autoresume.errors import UsageError
from autoresume.slurm import checks, cluster_checks, commands, environment, preemption, queue
from autoresume.slurm.commands import SlurmAway, SlurmMissing, SlurmRefused
from autoresume.slurm.preemption import Preemption

_COMMANDS = ("scontrol", "sbatch", "srun")
_MEETING_SECONDS = 180.0
_CANARY_BYTES = 10**8
"""Where the size of the state is not known."""
_QUEUE_SECONDS = 60
"""How long two nodes are waited for."""


@click.command()
@click.option(
    "--partition", default=None, metavar="NAME", help="The partition to judge. Default: the job's, or Slurm's."
)
@click.option("--qos", default=None, metavar="NAME", help="The quality of service, where that decides.")
@click.option("--job", default=None, metavar="ID", help="A job to judge. Default: the one that this is run in.")
@click.option("--run-dir", default="runs", show_default=True, type=click.Path(), help="Where the run is to live.")
@click.option("--state-size", default=None, metavar="SIZE", help="Of a checkpoint, e.g. 1.5GB. Default: the newest's.")
@click.option("--nodes", type=click.IntRange(1), default=None, help="Nodes of the run. Default: the job's, or 1.")
@click.option("--two-nodes", is_flag=True, help="Have srun try how soon two nodes see each other's files.")
@click.option("--canary", is_flag=True, help="Submit a job of a minute that is signalled, requeued and resumed.")
@click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="Of the canary, on each node.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--meet", default=None, type=click.Path(file_okay=False), hidden=True, help="Be a player on a node.")
def command(
    partition: str | None,
    qos: str | None,
    job: str | None,
    run_dir: str,
    state_size: str | None,
    nodes: int | None,
    two_nodes: bool,
    canary: bool,
    ranks: int,
    as_json: bool,
    meet: str | None,
) -> None:
    """Would a preemption be survived? Looks at the cluster, at this machine, and at the run directory.

    Exit code 0: nothing fails. 1: something does.
    """
    if meet is not None:
        _meet(Path(meet))
        return
    task = environment.read()
    job = job or (task.spelled if task else None)
    nodes = nodes or environment.nodes()
    size = (
        saving.State(bytes_of("--state-size", state_size), "--state-size")
        if state_size
        else saving.newest(Path(run_dir))
    )
    found, ends, is_cluster = slurm(partition, qos, job)
    several = nodes > 1 or is_cluster
    found += machine(Path(run_dir), size, nodes, several, ends, inside=task is not None or not is_cluster)
    if two_nodes or (task is not None and environment.nodes() > 1):
        found.append(two(Path(run_dir), partition, inside=task is not None))
    if canary and is_cluster:
        words = [f"--nodes={nodes}", f"--nproc={ranks}"]
        words += [f"--{name}={value}" for name, value in (("partition", partition), ("qos", qos)) if value]
        grace = ends.seconds if ends is not None and ends.mode != "off" else None
        found += send(words, size.bytes if size else _CANARY_BYTES, Path(run_dir), grace)
    _say(found, as_json)
    sys.exit(1 if any(finding.verdict is Verdict.FAIL for finding in found) else 0)


# -- Slurm --------------------------------------------------------------------------------------------


def slurm(partition: str | None, qos: str | None, job: str | None) -> tuple[list[Finding], Preemption | None, bool]:
    """What Slurm says of itself; what a preemption does there, if that is known; and whether there is a cluster."""
    missing = [name for name in _COMMANDS if not commands.present(name)]
    if "scontrol" in missing:
        return [_no_slurm()], None, environment.read() is not None
    configured = environment.configuration_file()
    if configured and not Path(configured).is_file():  # scontrol would wait a minute for it
        return [checks.refused(f"SLURM_CONF names {configured}, which is not there")], None, True
    found = [_no_command(name) for name in missing]
    try:
        configuration = queue.configuration(patience_seconds=0.0)  # scontrol has a patience of its own
        found += cluster_checks.cluster(configuration)
        view = queue.look(job) if job else None
        if job and view is None:
            raise UsageError(f"--job {job}: Slurm does not know it (any more)")
        settings = _partition(queue.partitions(), partition or (view.partition.split(",")[0] if view else None))
        quality = _quality(configuration, qos or (view.quality if view else None))
        ends = preemption.preemption(configuration, settings, quality)
        found += checks.partition(configuration, settings, quality)
        found += checks.job(view, ends) if view else []
        if "sbatch" not in missing and not view:
            chosen = [f"--partition={settings['PartitionName']}", *([f"--qos={qos}"] if qos else [])]
            found.append(checks.submission(queue.refusal(tuple(chosen))))
    except SlurmAway as error:
        return [*found, checks.away(str(error))], None, True
    except (SlurmRefused, SlurmMissing) as error:
        if checks.without_cluster(str(error)):
            return [_no_slurm()], None, environment.read() is not None
        return [*found, checks.refused(str(error))], None, True
    return found, ends, True


def _no_slurm() -> Finding:
    if environment.read() is not None:
        words = "a container that hides it, perhaps: the node daemon can't ask why it is stopped, or for a requeue"
        bind = "Bind Slurm's commands, its configuration and munge's socket into the container."
        return Finding("Slurm", Verdict.WARN, "inside of a job, and Slurm can't be asked", words, bind)
    return Finding(
        "Slurm",
        Verdict.UNKNOWN,
        "there is none on this machine, or its clients know no cluster",
        "`autoresume run` trains here without it, and goes on after each interruption",
        "For a cluster, run this on its login node.",
    )


def _no_command(name: str) -> Finding:
    return Finding("Slurm", Verdict.FAIL, f"there is no {name}", "no job can be submitted or started", "Look at PATH.")


def _partition(known: dict[str, dict[str, str]], name: str | None) -> dict[str, str]:
    if not known:
        raise SlurmRefused("no partition is open to you")
    if name is None:
        return next((one for one in known.values() if one.get("Default") == "YES"), next(iter(known.values())))
    if name not in known:
        raise UsageError(f"there is no partition {name!r}; there are: {', '.join(known)}")
    return known[name]


def _quality(configuration: dict[str, str], name: str | None) -> dict[str, str] | None:
    """The quality of service, where that decides about preemption and is known."""
    if not name or not preemption.by_quality(configuration):
        return None
    try:
        known = queue.qualities()
    except (SlurmMissing, SlurmRefused):
        return None
    if name not in known:
        raise UsageError(f"there is no quality of service {name!r}; there are: {', '.join(known)}")
    return known[name]


# -- the machine --------------------------------------------------------------------------------------


def machine(
    run_dir: Path, state: saving.State | None, nodes: int, several: bool, ends: Preemption | None, inside: bool
) -> list[Finding]:
    """What is true of this machine and of the run directory. `several`: lives may be on other machines."""
    keep = options.load_options({}).keep
    size = state.bytes if state else None
    share = saving.share_of(state, nodes) if state else None
    window = ends.seconds if ends and ends.mode not in ("off", "suspend") else None
    found = [
        _looked_at(inside),
        *software.look(),
        saving.state_finding(state, nodes),
        *memory.findings(memory.look(), share),
    ]
    kind, mounted = filesystem.kind_of(folder.nearest(run_dir))
    found.append(filesystem.seen_by_others(run_dir, kind, several))
    tried, writing = folder.look(run_dir)
    found += [*tried, folder.room(run_dir, size, keep)]
    limited = filesystem.quota(folder.nearest(run_dir), kind, mounted, (keep + 1) * size if size else None)
    found += [limited] if limited else []
    estimate = _estimate(writing, share)
    return [
        *found,
        saving.fits(estimate, window, share),
        saving.torchrun(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT"), estimate),
        script.resumes(run_dir),
    ]


def _looked_at(inside: bool) -> Finding:
    if inside:
        return Finding("machine", Verdict.PASS, socket.gethostname(), "what follows is true of this machine")
    return Finding(
        "machine",
        Verdict.PASS,
        socket.gethostname(),
        "what follows is true of this machine; the nodes may have other memory and other disks",
        "For a node: srun autoresume doctor",
    )


def _estimate(writing: Writing, share: int | None) -> float | None:
    return None if share is None else saving.seconds(writing, share)


# -- two nodes ----------------------------------------------------------------------------------------


def two(run_dir: Path, partition: str | None, inside: bool) -> Finding:
    """Have srun start a player on each of two nodes."""
    where = ["--overlap"] if inside else [f"--immediate={_QUEUE_SECONDS}", "--time=5"]
    if partition and not inside:
        where.append(f"--partition={partition}")
    try:
        with folder.trial(run_dir) as storage:
            player = [sys.executable, "-m", "autoresume", "doctor", "--meet", str(storage.root)]
            text = commands.run(
                ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", *where, *player],
                timeout_seconds=_MEETING_SECONDS,
            )
    except (OSError, SlurmAway, SlurmMissing, SlurmRefused) as error:
        return Finding("seen by two nodes", Verdict.UNKNOWN, f"{error}", "two nodes could not be tried")
    players = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    problems = [f"{one['node']}: {one['problem']}" for one in players if one["problem"]]
    if problems or len(players) < 2:
        return meeting.unseen("; ".join(problems) or "one of the two nodes said nothing")
    rounds: list[float] = next((one["rounds"] for one in players if one["first"]), [])
    return meeting.judge(tuple(one["node"] for one in players), rounds)


def _meet(place: Path) -> None:
    """Be one of the two players; the other is another task of this step."""
    task = environment.read()
    if task is None or not task.in_step:
        raise UsageError("--meet is for autoresume doctor --two-nodes alone, which has srun start it")
    first, problem = task.rank == 0, ""
    rounds: list[float] = []
    try:
        rounds = meeting.play(place, first)
    except (OSError, TimeoutError) as error:
        problem = str(error)
    sys.stdout.write(json.dumps({"node": task.node, "first": first, "rounds": rounds, "problem": problem}) + "\n")


# -- words --------------------------------------------------------------------------------------------


def _say(found: list[Finding], as_json: bool) -> None:
    rows = [{**asdict(finding), "verdict": finding.verdict.value} for finding in found]
    for row in [] if as_json else rows:
        remedy = f"\n-> {row['remedy']}" if row["remedy"] else ""
        row["text"] = f"{row['found']}\n{row['means']}{remedy}"
    columns = [("verdict", ""), ("name", "what"), ("text", "found, and what it means")]
    emit(as_json, rows, columns, "")
    if not as_json:
        click.echo(summary(found))
