"""autoresume stop: have a run save and leave, wherever it trains."""

from __future__ import annotations

import getpass
import socket

import click

from autoresume.checkpoint import incarnation, requests
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.cli import jobs
from autoresume.cli.common import lives, open_run, tasks_of
from autoresume.errors import UsageError
from autoresume.slurm import queue
from autoresume.storage.local import LocalStorage


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
def command(run: str) -> None:
    """Ask the run in the directory RUN to save and leave. It is not started again by itself.

    The same command that started it goes on with it later. A job that still waits in Slurm's queue is cancelled.
    """
    storage, _ = open_run(run)
    storages = tasks_of(run) or [storage]
    views, _ = jobs.active_if_known(storage)
    for task in storages:
        views += [view for view in jobs.active_if_known(task)[0] if view not in views]
    waiting = [view for view in views if view.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD")]
    training = [one for one in storages if any(_trains(one, record) for record in incarnation.history(one)[-1:])]
    if not views and not training:
        raise UsageError(f"{run} is not training; autoresume status {run} says how it ended")
    for view in waiting:
        queue.cancel_if_waiting(view.spelled)
        click.echo(f"job {view.spelled} was waiting, and is cancelled")
    for one in storages:  # afterwards: a job that was started just now is not cancelled, and hears of it
        requests.ask_to_stop(one, f"autoresume stop by {getpass.getuser()} on {socket.gethostname()}")
    if len(waiting) < len(views) or training:
        click.echo(f"{run} is asked to stop: it saves at its next step and leaves")


def _trains(storage: LocalStorage, record: Incarnation) -> bool:
    return record.ended is None and lives(storage, record)
