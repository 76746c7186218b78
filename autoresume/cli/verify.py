"""autoresume verify: every byte against its digest."""

from __future__ import annotations

import sys

import click

from autoresume.checkpoint.discover import list_checkpoints
from autoresume.checkpoint.verify import verify
from autoresume.cli.common import emit, open_run, pick


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.argument("checkpoint", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(run: str, checkpoint: str | None, as_json: bool) -> None:
    """Read all checkpoints of the directory RUN (or CHECKPOINT alone), and compare every digest.

    Exit code 0: all are whole. 1: at least one isn't. Nothing is changed.
    """
    storage, run_id = open_run(run)
    chosen = [pick(storage, checkpoint)] if checkpoint else list_checkpoints(storage)
    rows = []
    for name in chosen:
        problem = verify(storage, name, run_id)
        rows.append({"checkpoint": str(name), "valid": problem is None, "state": problem or "valid"})
    emit(as_json, rows, [("checkpoint", "checkpoint"), ("state", "state")], f"{run}: {len(rows)} checkpoints read")
    sys.exit(0 if all(row["valid"] for row in rows) else 1)
