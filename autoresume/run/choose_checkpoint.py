"""The checkpoint that this life goes on from: the run's own newest valid one, or that of another run or file.

Law: all ranks together; rank 0 decides, and every rank reads and verifies before anything is loaded. Another run's
folder is only read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from autoresume.checkpoint import sidefiles
from autoresume.load import read_checkpoint
from autoresume.load.read_checkpoint import Restored
from autoresume.ranks.ask_rank_0 import ask_rank_0
from autoresume.restore import beginning
from autoresume.restore.beginning import Beginning
from autoresume.run.resources import Resources

log = logging.getLogger("autoresume")


def choose_checkpoint(resources: Resources, objects: Mapping[str, Any]) -> tuple[Restored | None, Beginning | None]:
    """What was read, if there is a checkpoint to go on from; and what a new run takes over from elsewhere, if it does.

    Every rank must call it. Raises NoValidCheckpoint, UsageError, CheckpointInvalid.
    """
    ranks, request = resources.ranks, resources.options.restore
    begin = _decide(resources) if request.mode else None
    into_live = not (request.fresh or request.lenient)
    mailbox = resources.daemon.mailbox if resources.daemon else None
    restored = read_checkpoint.choose_and_read(
        resources.storage, resources.run_id, ranks, resources.guard, objects, mailbox, into_live
    )
    if restored is not None or begin is None:
        return restored, None
    if ranks.rank == 0:
        _inherit_loggers(resources, begin)
    if begin.checkpoint is None or begin.mode == "finetune":
        return None, begin
    return read_checkpoint.read_chosen(begin.storage, begin.checkpoint, ranks, objects, None, into_live), begin


def _decide(resources: Resources) -> Beginning | None:
    """Rank 0's word, on every rank."""

    def decide() -> dict[str, Any]:
        one = resources
        found = beginning.decide_beginning(one.options, one.folder, one.base, one.storage, one.guard, one.number)
        return {"beginning": found.to_json() if found else None}

    told = ask_rank_0(resources.ranks, decide if resources.ranks.rank == 0 else None)["beginning"]
    return Beginning.of(told) if told is not None else None


def _inherit_loggers(resources: Resources, begin: Beginning) -> None:
    """What `continue` goes on in, and what the others' logging runs have for a parent."""
    loggers = dict(dict(begin.about.get("run") or {}).get("loggers") or {})
    if begin.mode == "continue":
        resources.run_file.change(loggers=loggers, parent=None)
    else:
        resources.run_file.change(parent={"run_id": begin.run_id, "origin": begin.description, "loggers": loggers})


def restore_side_files(resources: Resources, restored: Restored | None, begin: Beginning | None) -> None:
    """Side files as they were at the restored checkpoint; every rank calls it, and sees them afterwards."""
    storage = resources.storage
    if resources.ranks.rank == 0 and begin is not None and restored is not None:
        for file in restored.files:
            storage.write(file, begin.storage.read(restored.manifest.checkpoint.inside(file)))
    elif resources.ranks.rank == 0:
        name, files = (restored.manifest.checkpoint, restored.files) if restored else (None, ())
        gone = sidefiles.restore_files(storage, name, files, resources.number)
        if gone:
            log.info("side files that are newer than the checkpoint are put aside: %s", ", ".join(gone))
    resources.ranks.gather(None)
