"""autoresume cancel: end the jobs of a run."""

from __future__ import annotations

import click

from autoresume.cli import jobs
from autoresume.cli.common import open_run
from autoresume.slurm import queue


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
def command(run: str) -> None:
    """Cancel the jobs of the directory RUN, as scancel does: they are not requeued.

    A checkpoint is made if Slurm's KillWait leaves the time; `autoresume stop` takes as long as it needs.
    """
    storage, _ = open_run(run)
    for view in jobs.only_active(storage, run):
        queue.cancel(view.spelled)
        click.echo(f"job {view.spelled} is cancelled")
