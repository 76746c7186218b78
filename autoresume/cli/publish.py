"""autoresume publish: give a run's loggers what they miss."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from autoresume.checkpoint import incarnation
from autoresume.cli.common import open_run
from autoresume.cli.node import say
from autoresume.errors import RunIsLive, UsageError
from autoresume.format import names
from autoresume.loggers import journal
from autoresume.loggers.base import RunInfo
from autoresume.loggers.publisher import Publisher


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--logger", "loggers", multiple=True, help="Which; by default those that the run has had.")
@click.option("--patience", default=600.0, show_default=True, help="Seconds to wait for them.")
def command(run: str, loggers: tuple[str, ...], patience: float) -> None:
    """Feed the loggers of the directory RUN from its metrics.jsonl: those that were down when it ended, or new ones.

    The run must not be training. Each step is given once; what a logger holds is not sent again.
    """
    say("autoresume publish")
    storage, run_id = open_run(run)
    lives = incarnation.history(storage)
    if lives and lives[-1].ended is None and incarnation.is_live(storage, lives[-1], []):
        raise RunIsLive(
            f"incarnation {lives[-1].number} is training on {lives[-1].host}, and feeds its loggers by itself"
        )
    known = json.loads(storage.read(names.RUN))
    wanted = loggers or tuple(known.get("loggers") or ())
    if not wanted:
        raise UsageError(f"the run in {run} has had no loggers; say which with --logger")
    last = max((record.step for record in journal.read(storage.path(names.JOURNAL))), default=0)
    parent = dict(known.get("parent") or {})

    def remember(found: Mapping[str, Mapping[str, str]]) -> None:
        value: dict[str, Any] = json.loads(storage.read(names.RUN))
        storage.write(names.RUN, json.dumps({**value, "loggers": found}, indent=1).encode() + b"\n")

    publisher = Publisher(wanted)
    info = RunInfo(run_id, storage.root.name, storage.root, {}, origin=str(parent.get("origin", "")))
    publisher.open(info, known.get("loggers") or {}, dict(parent.get("loggers") or {}), last, remember)
    finished = bool(lives) and (lives[-1].ended or {}).get("how") == "finished"
    missing = publisher.close("finished" if finished else "interrupted", patience)
    if missing:
        raise UsageError(f"{', '.join(missing)} did not take everything; try again when it can be reached")
    click.echo(f"{', '.join(wanted)}: everything up to step {last} is there")
