"""autoresume drill: whether a script really resumes."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from pathlib import Path

import click

from autoresume.cli.common import emit
from autoresume.drill import report, schedule
from autoresume.drill.cluster import SlurmRun
from autoresume.drill.drill import IDENTICAL, INCONCLUSIVE, NOT_DETERMINISTIC, SAME_DATA, Drill, Result
from autoresume.drill.driver import Plan, Run
from autoresume.drill.record import read
from autoresume.drill.schedule import Interruption
from autoresume.errors import UsageError
from autoresume.node import processes

EXIT_DIVERGED, EXIT_NOT_DETERMINISTIC, EXIT_INCONCLUSIVE = 1, 2, 3
_SHOWN = 8
_GENERATORS = re.compile(r"(rank \d+: )?run/(began|rng)/")


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--kills", default=4, show_default=True, help="How often it is interrupted.")
@click.option("--seed", default=0, show_default=True, help="Of the schedule: the same seed, the same interruptions.")
@click.option("--ranks", default=1, show_default=True, help="Ranks on this machine; more than one by torchrun.")
@click.option("--world-size", metavar="N,N,...", help="Another number of ranks in each life: compares the data alone.")
@click.option("--slurm", metavar="OPTIONS", help="Drill on the cluster: options of `autoresume sbatch`, in quotes.")
@click.option("--max-steps", type=int, metavar="N", help="Drill the first N steps of a training that is longer.")
@click.option("--max-seconds", type=float, metavar="S", help="Drill what the undisturbed run does in about S seconds.")
@click.option("--save-every", metavar="INTERVAL", help="By default so often that each life saves some times.")
@click.option("--grace", default=30.0, show_default=True, help="Seconds between a signal and the kill.")
@click.option("--schedule", "replayed", type=click.Path(), metavar="FILE", help="Replay the schedule.json of a drill.")
@click.option(
    "--output", type=click.Path(), metavar="FOLDER", help="Default: drills/<script>. What is there is replaced."
)
@click.option("--junit", type=click.Path(), metavar="FILE", help="Write a JUnit report, for CI.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
@click.argument("script", type=click.UNPROCESSED)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    kills: int,
    seed: int,
    ranks: int,
    world_size: str | None,
    slurm: str | None,
    max_steps: int | None,
    max_seconds: float | None,
    save_every: str | None,
    grace: float,
    replayed: str | None,
    output: str | None,
    junit: str | None,
    as_json: bool,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Does SCRIPT resume? Run it undisturbed twice, then interrupted, and compare them step by step.

    Compared are samples, generators, losses, gradients, options of optimizers, all that is tracked, run.state and
    metrics, on each rank, bit for bit. Exit code 0: identical; 1: it diverges; 2: it is not deterministic by
    itself; 3: nothing was resumed.
    """
    if not Path(script).is_file():
        raise UsageError(f"there is no script {script!r} in {Path.cwd()}")
    if kills < 1 or ranks < 1:
        raise UsageError("--kills and --ranks are numbers from 1 on")
    if max_steps is not None and max_steps < 2:
        raise UsageError(f"--max-steps {max_steps}: a drill needs at least 2 steps")
    folder = Path(output or Path("drills") / Path(script).stem).absolute()
    _refuse_others(folder)
    given = _schedule(replayed) if replayed is not None else None
    sizes = _sizes(world_size)
    _check_combination(bool(sizes), slurm is not None, max_steps is not None or max_seconds is not None)
    ranks = sizes[0] if sizes else ranks
    processes.become_subreaper()
    plan = Plan(
        script,
        arguments,
        folder,
        ranks=ranks,
        sizes=sizes,
        grace=grace,
        slurm=slurm,
        until=max_steps,
        save_every=save_every,
        environment={"WANDB_MODE": "offline"},
    )
    make = Run if slurm is None else SlurmRun
    result = Drill(_tell, compare_states, make).run(plan, seed, kills, given, max_seconds)
    if junit is not None:
        report.write_junit(result, Path(junit), shlex.join([script, *arguments]))
    _report(result, folder, f"{script}, seed {seed}", as_json)
    codes = {IDENTICAL: 0, SAME_DATA: 0, NOT_DETERMINISTIC: EXIT_NOT_DETERMINISTIC, INCONCLUSIVE: EXIT_INCONCLUSIVE}
    sys.exit(codes.get(result.verdict, EXIT_DIVERGED))


def _report(result: Result, folder: Path, title: str, as_json: bool) -> None:
    """Into the drill's folder, and to whoever has started it."""
    (folder / "schedule.json").write_text(schedule.to_json(result.schedule))
    report.write_json(result, folder / "report.json")
    lines = report.verdict(result) + report.figures(result)
    (folder / "report.txt").write_text("\n".join(lines) + "\n")
    which = "again" if result.verdict == NOT_DETERMINISTIC else "interrupted"
    one, other = (read(folder / name / "records") for name in ("undisturbed", which))
    plotted = report.write_plot(result, one, other, folder / "trajectory.png")
    if as_json:
        click.echo((folder / "report.json").read_text(), nl=False)
        return
    if result.lives:
        emit(False, report.rows(result), report.COLUMNS, title)
    click.echo("\n".join(lines))
    click.echo(f"  all of it: {os.path.relpath(folder)}" + (f" ({plotted})" if plotted else ""))


def _schedule(file: str) -> list[Interruption]:
    try:
        return schedule.from_json(Path(file).read_text(), file)
    except OSError as error:
        raise UsageError(f"--schedule {file}: {error.strerror or error}") from error


def _check_combination(resized: bool, on_slurm: bool, shortened: bool) -> None:
    if resized and shortened:
        raise UsageError("--world-size compares whole epochs: drill a small configuration, without --max-steps")
    if on_slurm and (resized or shortened):
        raise UsageError("--slurm drills whole runs: without --world-size, --max-steps and --max-seconds")


def _tell(text: str) -> None:
    click.echo(f"drill: {text}", err=True)


def _sizes(text: str | None) -> list[int]:
    if text is None:
        return []
    found = [int(word) for word in text.split(",") if word.strip().isdigit()]
    if len(found) != len(text.split(",")) or not all(found):
        raise UsageError(f"--world-size {text}: give numbers of ranks, e.g. 2,1,2")
    return found


def _refuse_others(folder: Path) -> None:
    """What is no drill's is not replaced. Raises UsageError."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "undisturbed").is_dir())):
        raise UsageError(
            f"--output {folder}: there is something else, which a drill would replace; give another folder"
        )


def compare_states(one: str, other: str) -> list[str]:
    """What of the latest checkpoints of two runs differs."""
    comparing = importlib.import_module("autoresume.restore.diff")
    found = comparing.compare(comparing.read_values(one), comparing.read_values(other))
    # Contents of pickles, and generators that somebody draws from, were compared in each step.
    found = [line for line in found if line.what != "pickle" and not _GENERATORS.match(line.name)]
    more = [f"... and {len(found) - _SHOWN} more: autoresume diff {one} {other}"] if len(found) > _SHOWN else []
    return [f"the final {line.name} ({line.what})" for line in found[:_SHOWN]] + more
