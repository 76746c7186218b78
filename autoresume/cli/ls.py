"""autoresume ls: the checkpoints of a run."""

from __future__ import annotations

from typing import Any

import click

from autoresume.checkpoint import tags
from autoresume.checkpoint.discover import Judged, judge, judge_quickly, list_checkpoints
from autoresume.cli.common import age, emit, open_run, size
from autoresume.errors import CheckpointInvalid
from autoresume.format import names
from autoresume.format.manifest import Manifest, ManifestHead
from autoresume.format.names import CheckpointName
from autoresume.format.part import Labels
from autoresume.storage.local import LocalStorage

_FILES_LOOKED_AT = 2000
"""Until so many files were looked at, newest checkpoints first, each is judged: for all but the largest runs, all."""
_METRICS = 3


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--deep", is_flag=True, help="Look at the files of all checkpoints, however many they are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(run: str, deep: bool, as_json: bool) -> None:
    """The checkpoints in the directory RUN, newest first: size, age, validity, and what was put aside and why.

    "valid" is what a resume would take: the manifest is whole, every file has its size, every part its digest. The
    newest is always judged so, and older ones until 2,000 files were looked at; those after them are "committed":
    their manifest is whole, and their files were not looked at (--deep looks at all; `autoresume verify` reads them).
    """
    storage, run_id = open_run(run)
    rows: list[dict[str, Any]] = []
    looked_at, later = 0, tags.given_tags(storage)
    for name in list_checkpoints(storage):
        found: Judged | ManifestHead | None = None
        if looked_at >= _FILES_LOOKED_AT and not deep:
            found = _at_a_glance(storage, name, run_id)
        if found is None:
            found = judge(storage, name, run_id)
            looked_at += _files(found.manifest)
        rows.append(_row(name, found, later.get(str(name), ())))
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
            row["labels"] = _labels(row)
            row["state"] = _WORDS.get(row["valid"], row["problem"])
    columns = [("checkpoint", "checkpoint"), ("step", "step"), ("ranks", "ranks"), ("size", "size"), ("age", "age")]
    columns += [("labels", "metrics and tags")] if any(row.get("labels") for row in rows) else []
    emit(as_json, rows, [*columns, ("state", "state")], f"{run}: {len(rows)} checkpoints")


_WORDS = {True: "valid", None: "committed"}


def _at_a_glance(storage: LocalStorage, name: CheckpointName, run_id: str) -> ManifestHead | None:
    """None where a glance shows that something is wrong: what it is, is judged."""
    try:
        return judge_quickly(storage, name, run_id)
    except (CheckpointInvalid, OSError):
        return None


def _files(manifest: Manifest | None) -> int:
    return sum(1 + len(part.files) for part in manifest.parts) if manifest else 0


def _labels(row: dict[str, Any]) -> str:
    """A few of the metrics, and all tags."""
    metrics = [f"{name} {value:.4g}" for name, value in list(dict(row.get("metrics") or {}).items())[:_METRICS]]
    return ", ".join([*row.get("tags", ()), *metrics])


def _row(name: CheckpointName, found: Judged | ManifestHead, later: tuple[str, ...]) -> dict[str, Any]:
    """`valid` is null where the files were not looked at."""
    manifest = found.manifest if isinstance(found, Judged) else found
    labels = manifest.labels if manifest else Labels()
    return {
        "checkpoint": str(name),
        "step": name.step,
        "epoch": name.epoch,
        "samples": name.samples,
        "incarnation": name.incarnation,
        "ranks": manifest.world_size if manifest else None,
        "bytes": manifest.total_bytes if manifest else None,
        "time": manifest.time if manifest else None,
        "metrics": dict(labels.metrics),
        "tags": [*labels.tags, *(tag for tag in later if tag not in labels.tags)],
        "valid": found.problem is None if isinstance(found, Judged) else None,
        "problem": found.problem if isinstance(found, Judged) else None,
    }
