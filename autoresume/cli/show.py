"""autoresume show: what one checkpoint holds."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from autoresume.checkpoint.discover import judge, load_parts
from autoresume.cli.common import emit, open_run, pick, size
from autoresume.errors import CheckpointInvalid
from autoresume.format import tree

_SHOWN = 60


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.argument("checkpoint", default="latest")
@click.option("--rank", default=0, show_default=True, help="Whose own state is shown.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: tensors, then the state tree.")
def command(run: str, checkpoint: str, rank: int, as_json: bool) -> None:
    """The tensors and the state of CHECKPOINT (a name, a step, or "latest") of the directory RUN."""
    storage, run_id = open_run(run)
    name = pick(storage, checkpoint)
    judged = judge(storage, name, run_id)
    if judged.manifest is None:
        raise CheckpointInvalid(f"{name} can't be shown: {judged.problem}")
    if not 0 <= rank < judged.manifest.world_size:
        raise click.BadParameter(f"the checkpoint has ranks 0 to {judged.manifest.world_size - 1}", param_hint="--rank")
    parts = load_parts(storage, judged.manifest, range(judged.manifest.world_size))
    rows: dict[str, dict[str, Any]] = {}
    for part in parts:
        for chunk in part.chunks:
            if not chunk.shared and part.rank != rank:
                continue
            row = rows.setdefault(
                chunk.key,
                {"tensor": chunk.key, "dtype": chunk.dtype, "shape": list(chunk.shape), "bytes": 0, "ranks": []},
            )
            row["bytes"] += chunk.bytes
            row["ranks"].append(part.rank)
    ordered = sorted(rows.values(), key=lambda row: row["tensor"])
    if as_json:
        emit(True, ordered, [], "")
        sys.stdout.write(json.dumps({"state": parts[rank].tree}) + "\n")
        return
    total = sum(row["bytes"] for row in ordered)
    for row in ordered:
        row["size"] = size(row["bytes"])
        row["in"] = "all ranks" if len(row["ranks"]) > 1 else f"rank {row['ranks'][0]}"
    columns = [("tensor", "tensor"), ("dtype", "dtype"), ("shape", "shape"), ("size", "size"), ("in", "stored by")]
    emit(
        False, ordered[:_SHOWN], columns, f"{name}: {len(ordered)} tensors, {size(total)}, {judged.problem or 'valid'}"
    )
    if len(ordered) > _SHOWN:
        click.echo(f"... and {len(ordered) - _SHOWN} more tensors (--json shows all)")
    emit(False, list(_values("", parts[rank].tree)), [("key", "state"), ("value", "value")], f"values of rank {rank}")


def _values(path: str, value: Any) -> Any:
    """The leaves of a state tree that are no tensors."""
    if isinstance(value, dict) and tree.TAG not in value:
        for key, item in value.items():
            yield from _values(tree.join(path, key), item)
    elif isinstance(value, dict) and value[tree.TAG] in ("tensor", "ndarray", "scalar"):
        return
    elif isinstance(value, dict) and value[tree.TAG] in ("dict", "OrderedDict"):
        for key, item in value["items"]:
            yield from _values(tree.join(path, key), item)
    else:
        text = json.dumps(value)
        yield {"key": path, "value": text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"}
