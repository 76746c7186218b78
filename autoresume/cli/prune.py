"""autoresume prune: delete old checkpoints by hand."""

from __future__ import annotations

import click

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.committed import committed_checkpoints
from autoresume.checkpoint.discover import judge
from autoresume.checkpoint.retain import Keep, superfluous
from autoresume.cli.common import emit, open_run
from autoresume.errors import RunIsLive, UsageError


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--keep", default=3, show_default=True, help="How many of the last valid checkpoints stay.")
@click.option("--keep-every", type=int, default=None, metavar="STEPS", help="Keep one for each so many steps, too.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(run: str, keep: int, keep_every: int | None, dry_run: bool, as_json: bool) -> None:
    """Delete the checkpoints of the directory RUN that are not needed any more. The run must not be training."""
    if keep < 1:
        raise UsageError(f"--keep {keep}: at least 1 checkpoint is kept, since the run goes on from it")
    storage, run_id = open_run(run)
    for record in incarnation.history(storage)[-1:]:
        if not dry_run and record.ended is None and incarnation.is_live(storage, record, []):
            raise RunIsLive(
                f"incarnation {record.number} is training on {record.host}, and prunes by itself (keep=...)"
            )
    # A damaged checkpoint is no successor of anything: only valid ones count.
    valid = [one for one in committed_checkpoints(storage, run_id) if judge(storage, one.name, run_id).problem is None]
    gone = superfluous(valid, Keep(keep, keep_every))
    for name in gone:
        if not dry_run:
            storage.remove(name.folder)
    word = "would be deleted" if dry_run else "deleted"
    rows = [{"checkpoint": str(name), "state": word} for name in gone]
    emit(as_json, rows, [("checkpoint", "checkpoint"), ("state", "state")], f"{run}: {len(rows)} {word}")
