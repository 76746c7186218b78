"""Every byte of a checkpoint against its digests."""

from __future__ import annotations

import mmap

from autoresume.checkpoint.discover import judge, load_part
from autoresume.errors import CheckpointInvalid
from autoresume.format.digest import digest
from autoresume.format.manifest import File, Manifest
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
        for file in (part.shard, *part.attachments.values()):
            verify_file(storage, name, file)


def verify_file(storage: Storage, name: CheckpointName, file: File) -> None:
    """Block by block, so that memory does not grow with the file. Raises CheckpointInvalid, OSError, EOFError."""
    view = memoryview(mmap.mmap(-1, max(1, min(file.block_bytes, file.bytes))))
    for block, expected in enumerate(file.digests):
        begin = block * file.block_bytes
        window = view[: min(file.block_bytes, file.bytes - begin)]
        storage.read(name.inside(file.name), into=window, offset=begin)
        if digest(window) != expected:
            raise CheckpointInvalid(
                f"{file.name} of {name} is damaged between byte {begin} and {begin + len(window)}: its digest differs"
            )
