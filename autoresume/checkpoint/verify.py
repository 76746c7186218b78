"""Every byte of a checkpoint against its digests."""

from __future__ import annotations

from autoresume.checkpoint import fetch
from autoresume.checkpoint.discover import judge, load_part
from autoresume.errors import CheckpointInvalid
from autoresume.format.manifest import Manifest
from autoresume.format.names import CheckpointName
from autoresume.storage.base import Storage


def verify(storage: Storage, name: CheckpointName, run_id: str | None = None) -> str | None:
    """Read all of `name`; None if every digest is right, else the reason."""
    judged = judge(storage, name, run_id)
    if judged.problem is not None or judged.manifest is None:
        return judged.problem
    try:
        _verify_files(storage, name, judged.manifest)
    except (CheckpointInvalid, OSError, EOFError) as error:
        return str(error)
    return None


def _verify_files(storage: Storage, name: CheckpointName, manifest: Manifest) -> None:
    for rank in range(manifest.world_size):
        part = load_part(storage, manifest, rank)
        for file in part.all_files:
            fetch.verify_file(storage, name, file)
