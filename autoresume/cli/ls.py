"""autoresume ls: the checkpoints of a run."""

from __future__ import annotations

from typing import Any

import click

from autoresume.checkpoint.discover import judge, listing
from autoresume.cli.common import age, emit, open_run, size
from autoresume.format import names


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(run: str, as_json: bool) -> None:
    """The checkpoints in the directory RUN, newest first: size, age, validity, and what was put aside and why."""
    storage, run_id = open_run(run)
    rows: list[dict[str, Any]] = []
    for name in listing(storage):
        judged = judge(storage, name, run_id)
        manifest = judged.manifest
        rows.append(
            {
                "checkpoint": str(name),
                "step": name.step,
                "epoch": name.epoch,
                "samples": name.samples,
                "incarnation": name.incarnation,
                "ranks": manifest.world_size if manifest else None,
                "bytes": manifest.total_bytes if manifest else None,
                "time": manifest.time if manifest else None,
                "valid": judged.problem is None,
                "problem": judged.problem,
            }
        )
    for aside in storage.list(names.ASIDE):
        try:
            reason = storage.read(f"{names.ASIDE}/{aside}/reason.txt").decode(errors="replace").strip()
        except OSError:
            reason = "no reason was written down"
        rows.append({"checkpoint": f"{names.ASIDE}/{aside}", "valid": False, "problem": f"put aside: {reason}"})
    if not as_json:
        for row in rows:
            row["size"] = size(row["bytes"]) if row.get("bytes") is not None else None
            row["age"] = age(row.get("time"))
            row["state"] = "valid" if row["valid"] else row["problem"]
    columns = [("checkpoint", "checkpoint"), ("step", "step"), ("ranks", "ranks"), ("size", "size"), ("age", "age")]
    emit(as_json, rows, [*columns, ("state", "state")], f"{run}: {len(rows)} checkpoints")
