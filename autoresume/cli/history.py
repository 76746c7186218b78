"""autoresume history: the incarnations of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from autoresume.audit import verdict
from autoresume.audit.verdict import Retrained
from autoresume.checkpoint import incarnation
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.cli.common import emit, open_run

COLUMNS = [
    ("incarnation", "incarnation"),
    ("began_at_step", "began at step"),
    ("ended_at_step", "ended at step"),
    ("how", "how"),
    ("why", "why"),
    ("steps_lost", "steps lost"),
    ("first_step_seconds", "s to first step"),
    ("retrained", "trained again"),
]


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(run: str, as_json: bool) -> None:
    """How each incarnation of the directory RUN began and ended, and what was lost between two."""
    storage, _ = open_run(run)
    retrained = verdict.read(storage.root)
    rows = lives(incarnation.history(storage), retrained)
    emit(as_json, rows, COLUMNS, f"{run}: {len(rows)} incarnations")
    for told in retrained if not as_json else ():
        if told.difference is not None:
            click.echo(f"life {told.life}, {told.words()}")
            click.echo(f"  likely cause: {told.difference['cause']}: {told.difference['why']}")
            click.echo(f"  what to do: {told.difference['remedy']}")


def lives(records: list[Incarnation], retrained: Sequence[Retrained] = ()) -> list[dict[str, Any]]:
    """A row for each incarnation. Steps lost: what the next one had to do again; trained again: what came of that."""
    verdicts = {told.life: "the same" if told.difference is None else "differs" for told in retrained}
    rows: list[dict[str, Any]] = []
    for record, following in zip(records, [*records[1:], None]):
        ended = record.ended or {"how": "running" if following is None else "unknown", "step": None, "why": ""}
        reached, resumed = ended["step"], following.began.get("step") if following else None
        lost = None if reached is None or resumed is None else max(0, reached - resumed)
        rows.append(
            {
                "incarnation": record.number,
                "began_at_step": record.began.get("step"),
                "ended_at_step": reached,
                "how": ended["how"],
                "why": ended["why"],
                "steps_lost": lost,
                "first_step_seconds": record.began.get("first_step_seconds"),
                "host": record.host,
                "world_size": record.world_size,
                "retrained": verdicts.get(record.number, ""),
            }
        )
    return rows
