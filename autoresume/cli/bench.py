"""autoresume bench: what a save costs here, and what follows from it, before anything trains."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

import autoresume
from autoresume.checkpoint.discover import judge
from autoresume.checks import saving
from autoresume.checks.save_cost import Estimate, Trial, measure
from autoresume.cli.common import bytes_of, emit, open_run, pick, seconds_in_words, size
from autoresume.cli.doctor import slurm
from autoresume.config import options
from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.run import cadence
from autoresume.slurm import environment
from autoresume.storage.local import LocalStorage

_HOURS = {"s": 1 / 3600, "min": 1 / 60, "m": 1 / 60, "h": 1.0, "d": 24.0}


@dataclass(frozen=True)
class _Asked:
    """What a save is to be tried for."""

    folder: Path
    state: saving.State
    world_size: int | None
    """Ranks that wrote the checkpoint that is taken for an example."""
    step_seconds: float | None


@click.command()
@click.argument("run", type=click.Path(file_okay=False), default=None, required=False)
@click.option("--state", default=None, metavar="SIZE", help="Of a checkpoint, e.g. 1.5GB. Default: RUN's newest.")
@click.option("--checkpoint", default=None, metavar="NAME", help="One of RUN's, by name or step, to take the size of.")
@click.option("--run-dir", default="runs", show_default=True, type=click.Path(), help="Which disk to try, without RUN.")
@click.option("--nproc", type=click.IntRange(1), default=None, help="Ranks on this node. Default: RUN's, or 1.")
@click.option("--nodes", type=click.IntRange(1), default=None, help="Nodes of the run. Default: the job's, or 1.")
@click.option("--grace", type=float, default=None, metavar="SECONDS", help="From the signal to the kill.")
@click.option("--partition", default=None, metavar="NAME", help="The partition that tells the grace time.")
@click.option("--mtbf", default="4h", show_default=True, metavar="TIME", help="Mean time between interruptions.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Saves that are tried.")
@click.option(
    "--profile", default=None, metavar="FOLDER", type=click.Path(), help="Train, and trace it there, instead."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, in seconds and bytes.")
def command(
    run: str | None,
    state: str | None,
    checkpoint: str | None,
    run_dir: str,
    nproc: int | None,
    nodes: int | None,
    grace: float | None,
    partition: str | None,
    mtbf: str,
    rounds: int,
    profile: str | None,
    as_json: bool,
) -> None:
    """What will a save cost on this disk, with this state and these ranks? Tries it with the code that saves.

    RUN is a run directory whose disk, state and ranks are taken. Everything that is written is removed again.

    With --profile a small training with a state of that size is preempted once and resumed, in a run directory of its
    own, and both lives are traced for TensorBoard.
    """
    asked = _asked(run, state, checkpoint, Path(run_dir))
    nodes = nodes or environment.nodes()
    ranks = nproc or max(1, (asked.world_size or 1) // nodes)
    if profile is not None:
        sys.exit(_trace(Path(profile), asked.state.bytes, ranks))
    between = _seconds(mtbf)
    window, told_by = (grace, "--grace") if grace is not None else _grace(partition)
    with _cleaned_up_when_ended():
        trial = measure(asked.folder, saving.share_of(asked.state, nodes), ranks, rounds)
    estimate = Estimate(trial, between, window, asked.step_seconds)
    if as_json:
        sys.stdout.write(json.dumps(_numbers(asked, estimate, ranks, nodes)) + "\n")
        return
    emit(
        False, _rows(asked, estimate, ranks, nodes, told_by), [("what", "what"), ("found", "found"), ("means", "")], ""
    )


def _trace(folder: Path, state_bytes: int, ranks: int) -> int:
    """Train for the traces' sake; the exit code of `autoresume run`."""
    if folder.exists():
        raise UsageError(f"--profile {folder}: it exists already; give a new folder, for the run that is traced")
    environment = {**os.environ, "AUTORESUME_RUN_DIR": str(folder)}
    script = str(Path(autoresume.__file__).parent / "scripts" / "profiled.py")
    command = [sys.executable, "-m", "autoresume", "run", "--nproc", str(ranks), script, str(state_bytes)]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode == 0:
        click.echo(f"tensorboard --logdir {folder / names.TRACES}   # needs pip install 'autoresume-hpc[profile]'")
    return done.returncode


@contextlib.contextmanager
def _cleaned_up_when_ended() -> Iterator[None]:
    """SIGTERM ends the block as an exception does, so that gigabytes don't stay behind."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- what is asked for --------------------------------------------------------------------------------


def _asked(run: str | None, state: str | None, checkpoint: str | None, run_dir: Path) -> _Asked:
    if run is None and checkpoint is not None:
        raise UsageError(f"--checkpoint {checkpoint}: give the run directory that it lies in as well")
    if run is None:
        found = None if state else saving.newest(run_dir)
        if state:
            found = saving.State(bytes_of("--state", state), "--state")
        if found is None:
            raise UsageError(
                f"how large the state is is not known, since {run_dir} holds no checkpoint: give --state, e.g. --state "
                "1.5GB, or a run directory. With AdamW it is about 12 bytes for each parameter."
            )
        return _Asked(run_dir, found, None, None)
    storage, run_id = open_run(run)
    steps = _step_seconds(storage)
    if state:
        return _Asked(Path(run), saving.State(bytes_of("--state", state), "--state"), None, steps)
    name = pick(storage, checkpoint or "latest")
    judged = judge(storage, name, run_id)
    if judged.manifest is None:
        raise UsageError(f"checkpoint {name} can't be taken for an example: {judged.problem}. Give --state.")
    told_by = f"checkpoint {name}"
    return _Asked(Path(run), saving.State(judged.manifest.total_bytes, told_by), judged.manifest.world_size, steps)


def _step_seconds(storage: LocalStorage) -> float | None:
    """How long a step of this run takes, as it told last."""
    try:
        found = json.loads(storage.read(names.PROGRESS))["step_seconds"]
        return None if found is None else float(found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _grace(partition: str | None) -> tuple[float, str]:
    """What Slurm leaves after a preemption, else what the option `grace` says; and who told it."""
    _, ends, _ = slurm(partition, None, None)
    if ends is not None and ends.mode != "off":
        return ends.seconds, "Slurm"
    return options.load_options({}).grace, "the option grace"


def _seconds(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not match or match.group(2) not in _HOURS or float(match.group(1)) == 0:
        raise UsageError(f"--mtbf {text!r}: give a time, e.g. 30min, 4h or 2d")
    return float(match.group(1)) * _HOURS[match.group(2)] * 3600


# -- words --------------------------------------------------------------------------------------------


def _numbers(asked: _Asked, estimate: Estimate, ranks: int, nodes: int) -> dict[str, object]:
    trial = estimate.trial
    return {
        "state_bytes": asked.state.bytes,
        "nodes": nodes,
        "ranks": ranks,
        "tried_bytes": trial.tried_bytes,
        "rounds": len(trial.copy),
        "copy_seconds": list(trial.copy),
        "persist_seconds": list(trial.persist),
        "stall_seconds": trial.stall_seconds,
        "durable_seconds": trial.durable_seconds,
        "processor_seconds": trial.processor_seconds,
        "step_seconds": estimate.step_seconds,
        "last_save_seconds": estimate.last_save_seconds,
        "grace_seconds": estimate.grace_seconds,
        "fits": estimate.fits,
        "failure_seconds": estimate.failure_seconds,
        "interval_seconds": estimate.interval_seconds,
        "stall_share": estimate.stall_share,
        "lost_seconds": estimate.lost_seconds,
    }


def _rows(asked: _Asked, estimate: Estimate, ranks: int, nodes: int, told_by: str) -> list[dict[str, str]]:
    trial = estimate.trial
    share = f"{ranks} rank{'s' if ranks > 1 else ''} on this node write {size(trial.state_bytes)}"
    if nodes > 1:
        share += f", and {nodes - 1} other node{'s' if nodes > 2 else ''} as much each"
    return [
        _row("state", f"{size(asked.state.bytes)}, by {asked.state.told_by}", share),
        _row("tried", _tried(trial), "on the disk of " + str(asked.folder.absolute())),
        _row(
            "stall",
            _took(trial.stall_seconds),
            "how long training stands still for the copy, at most: less where forward and backward hide it",
        ),
        _row(
            "durable",
            _took(trial.durable_seconds),
            f"from the step boundary to the commit: {size(int(trial.state_bytes / trial.durable_seconds))} a second",
        ),
        _row("processor", _took(trial.processor_seconds), "of this node's cores, for each save"),
        _last_save(estimate, told_by),
        _interval(estimate),
    ]


def _row(what: str, found: str, means: str) -> dict[str, str]:
    return {"what": what, "found": found, "means": means}


def _took(seconds: float) -> str:
    return (
        f"{1000 * seconds:.0f} ms"
        if seconds < 1
        else f"{seconds:.1f} s"
        if seconds < 120
        else seconds_in_words(seconds)
    )


def _tried(trial: Trial) -> str:
    times = f"{len(trial.copy)} saves of {size(trial.tried_bytes)}"
    return times if trial.scale == 1 else f"{times}, scaled by {trial.scale:.1f}"


def _last_save(estimate: Estimate, told_by: str) -> dict[str, str]:
    step = "a save; the step in progress comes on top"
    if estimate.step_seconds:
        step = f"a step of {_took(estimate.step_seconds)}, and a save"
    found = f"{_took(estimate.last_save_seconds)}: {step}"
    window = estimate.grace_seconds
    if estimate.fits:
        return _row("last save", found, f"fits into the {window:.0f} s of grace ({told_by})")
    lost = f"steps since the last save, {_took(estimate.lost_seconds)} on average, are done again after a preemption"
    return _row("last save", found, f"does NOT fit into the {window:.0f} s of grace ({told_by}): {lost}")


def _interval(estimate: Estimate) -> dict[str, str]:
    every = estimate.interval_seconds
    means = f"{100 * estimate.stall_share:.2g} % of the time goes to saves; a kill without a word costs "
    means += f"{_took(estimate.lost_seconds)} on average"
    if every <= cadence.LEAST_SECONDS:
        means += f". The best would be less than {cadence.LEAST_SECONDS:.0f} s, the least that save_every=auto takes"
    found = f"every {seconds_in_words(every)}, with an interruption every {seconds_in_words(estimate.failure_seconds)}"
    return _row("best interval", found, means)
