"""autoresume requeue: have the job of a run start anew."""

from __future__ import annotations

import click

from autoresume.cli import jobs
from autoresume.cli.common import open_run
from autoresume.errors import UsageError
from autoresume.slurm import queue


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
def command(run: str) -> None:
    """Requeue the running jobs of the directory RUN: Slurm ends them, and starts them again.

    A checkpoint is made if Slurm's KillWait leaves the time.
    """
    storage, _ = open_run(run)
    running = [view for view in jobs.only_active(storage, run) if view.state == "RUNNING"]
    if not running:
        raise UsageError(f"no job of {run} is running: it waits already")
    for view in running:
        queue.requeue(view.spelled)
        click.echo(f"job {view.spelled} is requeued")
