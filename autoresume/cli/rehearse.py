"""autoresume rehearse: a drill of a few steps before a new run is begun.

Law: in a folder that is thrown away, on this node alone. A run that has a checkpoint is not rehearsed. Only a training
that diverges after a resume, or fails by itself, is refused; whatever else there is to say of it is told.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import click

from autoresume.checkpoint.discover import newest_step
from autoresume.cli.drill import compare_states
from autoresume.drill import report
from autoresume.drill.drill import DIVERGED, IDENTICAL, Drill, Result
from autoresume.drill.driver import Plan
from autoresume.errors import UsageError
from autoresume.node import processes
from autoresume.restore.beginning import default_run_folder
from autoresume.storage.local import LocalStorage

_STEPS, _SECONDS, _KILLS, _SCHEDULE = 8, 20.0, 2, 1


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--nproc", default=1, show_default=True, help="Ranks on this machine; more than one by torchrun.")
@click.option("--grace", default=30.0, show_default=True, help="Seconds between a signal and the kill.")
@click.argument("script", type=click.UNPROCESSED)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(nproc: int, grace: float, script: str, arguments: tuple[str, ...]) -> None:
    """Drill the first steps of SCRIPT before its run is begun: `autoresume run --rehearse` and `sbatch --rehearse`
    do it.

    At most 8 steps, or 20 seconds of training, undisturbed twice and interrupted twice, in a folder that is thrown
    away. Exit code 0: the run may begin, or has a checkpoint already; 1: it would not resume rightly.
    """
    if not Path(script).is_file():
        raise UsageError(f"there is no script {script!r} in {Path.cwd()}")
    given = os.environ.get("AUTORESUME_RUN_DIR")
    folder = Path(given) if given else default_run_folder([script, *arguments], Path.cwd())
    if newest_step(LocalStorage(folder)):
        _tell(f"{folder} has a checkpoint, and goes on from it: nothing is rehearsed")
        return
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]  # what is tried here is no job, and is not to be requeued
    os.environ.pop("AUTORESUME_RUN_DIR", None)
    os.environ["AUTORESUME_REHEARSE"] = "0"  # whatever autoresume.yaml says: this is it
    processes.become_subreaper()
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-rehearsal-", dir=folder.parent))
    try:
        plan = Plan(
            script,
            arguments,
            place / "drill",
            ranks=nproc,
            grace=grace,
            until=_STEPS,
            environment={"WANDB_MODE": "offline"},
        )
        result = Drill(lambda text: None, compare_states).run(plan, _SCHEDULE, _KILLS, max_seconds=_SECONDS)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    sys.exit(_judge(result, script))


def _judge(result: Result, script: str) -> int:
    lines = report.verdict(result)
    _tell("\n  ".join(lines))
    if result.verdict == DIVERGED:
        _tell(f"{script} was not started: what is interrupted would go on as another training. Mend it; or start it "
              "without --rehearse")  # fmt: skip
        return 1
    if result.verdict != IDENTICAL:
        _tell(f"{script} is started all the same: that is nothing that a resume makes worse")
    return 0


def _tell(text: str) -> None:
    click.echo(f"rehearsal: {text}", err=True)
