"""From a committed checkpoint into live objects: chosen by all ranks together, verified, then loaded.

Law: nothing is loaded before every rank has read and verified all it needs: what is read into live tensors
already is overwritten by the next candidate, or training does not begin. A checkpoint that is
damaged is put aside by rank 0 with the reason and the next one is tried; state that doesn't fit is an
error that lists what differs. A run that has had checkpoints is never silently started from scratch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from autoresume.base.failpoints import failpoint
from autoresume.base.spans import span
from autoresume.checkpoint import sidefiles
from autoresume.checkpoint.discover import judge
from autoresume.checkpoint.persist import Guard
from autoresume.errors import CheckpointInvalid, StateError
from autoresume.format import tree
from autoresume.format.manifest import Manifest
from autoresume.format.names import CheckpointName
from autoresume.handoff import kept_snapshots
from autoresume.handoff.mailbox import Mailbox
from autoresume.load.boxes import Box
from autoresume.load.candidates import VISIBLE_SECONDS, Candidates
from autoresume.load.reader import CheckpointReader
from autoresume.ranks.agreement import Ranks
from autoresume.ranks.ask_rank_0 import ask_rank_0
from autoresume.state.decode import decode, tensor_keys
from autoresume.state.in_place import in_place_targets
from autoresume.state.sharded import local_shards, shard_for
from autoresume.storage.base import Storage

log = logging.getLogger("autoresume")


@dataclass
class Restored:
    """A verified checkpoint in memory. Of the live objects only tensors may hold it already."""

    manifest: Manifest
    states: dict[str, Any]
    """name -> state dict, or the bytes of a pickled object."""
    exact: bool
    """False where this rank did not exist when the checkpoint was written."""
    files: tuple[str, ...]
    """Side files that it holds."""
    rejected: list[str]
    """Newer checkpoints that were not chosen, each with its reason."""
    about: dict[str, Any]
    """What its writer noted (rank 0's)."""
    unchanged: frozenset[str] = frozenset()
    """What lies in this rank's second tensor file."""


class _Needs(NamedTuple):
    """What a rank reads: the state of all objects, or `only` of some, sharded as the live `objects` are."""

    objects: Mapping[str, Any]
    only: frozenset[str] | None = None
    mailbox: Mailbox | None = None
    """Of the node's daemon, whose memory may hold the bytes."""
    into_live: bool = True
    """Straight into live tensors, where it fits."""


def choose_and_read(
    storage: Storage,
    run_id: str,
    ranks: Ranks,
    guard: Guard,
    objects: Mapping[str, Any],
    mailbox: Mailbox | None = None,
    into_live: bool = True,
) -> Restored | None:
    """The newest checkpoint that every rank can read, read; None if the run never had one.

    Every rank must call it. Of sharded tensors each reads what its `objects` hold; and where these are modules and
    optimizers that load as torch's do, and fit, the bytes are read straight into their tensors. What the node's daemon
    has kept in memory is named in its `mailbox`, and is not read from the disk. Raises NoValidCheckpoint if there were
    checkpoints and none is left: `objects` hold no one knows what then.
    """
    rejected: list[str] = []
    candidates = Candidates(storage, run_id, guard, rejected) if ranks.rank == 0 else None
    while True:
        offer = ask_rank_0(ranks, candidates.next if candidates else None)
        rejected[:] = offer["rejected"]
        if offer["name"] is None:
            return None
        name = CheckpointName.parse(offer["name"])
        assert name is not None
        needs = _Needs(objects, mailbox=mailbox, into_live=into_live)
        restored, problem = _read_together(storage, name, offer["digest"], ranks, needs)
        if restored is not None:
            if candidates is not None:
                candidates.settle()
            restored.rejected = rejected
            return restored
        if candidates is not None:
            candidates.reject(problem)


def read_chosen(
    storage: Storage,
    name: CheckpointName,
    ranks: Ranks,
    objects: Mapping[str, Any],
    only: frozenset[str] | None = None,
    into_live: bool = True,
) -> Restored:
    """A certain checkpoint, perhaps of another run, whose folder is only read; `only` the states of these objects.
    Unless it is read `into_live` tensors where it fits, `objects` only say which shards are needed.

    Every rank must call it. Raises CheckpointInvalid.
    """
    digest = ask_rank_0(ranks, (lambda: {"digest": _judged(storage, name)}) if ranks.rank == 0 else None)["digest"]
    restored, problem = _read_together(storage, name, digest, ranks, _Needs(objects, only, into_live=into_live))
    if restored is None:
        raise CheckpointInvalid(f"{name} of {storage!r} can't be restored: {problem}. Nothing was started.")
    return restored


def read_without_ranks(
    storage: Storage, manifest: Manifest, only: frozenset[str] | None = None, rank: int = 0
) -> Restored:
    """The states of a checkpoint as `rank` had them, with all of what was sharded, for a process that is no rank.

    Raises CheckpointInvalid.
    """
    return _read(storage, manifest, rank, _Needs({}, only))


def _judged(storage: Storage, name: CheckpointName) -> str:
    judged = judge(storage, name)
    if judged.manifest is None or judged.problem is not None:
        raise CheckpointInvalid(f"{name} of {storage!r} can't be restored: {judged.problem}. Nothing was started.")
    return judged.manifest.digest


def _read_together(
    storage: Storage,
    name: CheckpointName,
    digest: str,
    ranks: Ranks,
    needs: _Needs,
) -> tuple[Restored | None, str]:
    """What this rank has read if all could read theirs; else None, and the first reason."""
    problem, restored = None, None
    try:
        with span("read"):
            manifest = _visible(storage, name, digest)
            restored = _read(storage, manifest, ranks.rank, needs)
    except (CheckpointInvalid, OSError, EOFError) as error:
        problem = str(error)
    problems = ranks.gather(problem)
    if restored is not None and not any(problems):
        return restored, ""
    return None, next(item for item in problems if item)


def _visible(storage: Storage, name: CheckpointName, digest: str) -> Manifest:
    """The manifest that rank 0 chose, as soon as this rank's node sees it."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while True:
        try:
            manifest = Manifest.from_bytes(storage.read(name.manifest))
            if manifest.digest == digest:
                return manifest
            problem = "its manifest is another one than rank 0 sees"
        except (CheckpointInvalid, OSError) as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise CheckpointInvalid(f"a rank can't see it after {VISIBLE_SECONDS:.0f} s: {problem}")
        time.sleep(0.1)


def _read(storage: Storage, manifest: Manifest, rank: int, needs: _Needs) -> Restored:
    objects, only, mailbox, into_live = needs
    images = kept_snapshots.kept_images(mailbox, str(manifest.checkpoint)) if mailbox else {}
    reader = CheckpointReader(storage, manifest, rank, images)
    failpoint("restore.chosen")
    if not isinstance(reader.tree, dict):
        raise CheckpointInvalid("the state tree is not an object")
    stored_tree = {key: value for key, value in reader.tree.items() if only is None or key in only}
    sharded = local_shards(objects)
    stored = {key: reader.describe(key).shape for key in tensor_keys(stored_tree)}
    held = {key: box for key, shape in stored.items() if (box := shard_for(key, sharded, shape)) is not None}
    other = [
        f"{key} has shape {stored[key]} in the checkpoint and {box.shape} here"
        for key, box in held.items()
        if box.shape != stored[key]
    ]
    if other:
        raise StateError("the sharded state in the checkpoint and here differ:\n  " + "\n  ".join(other[:20]))
    wanted: dict[str, Box | None] = dict.fromkeys(stored)
    wanted.update((key, (box.offset, box.size)) for key, box in held.items())
    live = in_place_targets(objects, stored_tree, reader.describe) if into_live else {}
    tensors = reader.read(wanted, {key: tensor for key, tensor in live.items() if key not in held})
    tensors.update((key, box.to_dtensor(tensors[key])) for key, box in held.items())
    states: dict[str, Any] = {}
    for name, value in stored_tree.items():
        if isinstance(value, dict) and value.get(tree.TAG) == "pickled":
            states[name] = reader.attachment(str(value.get("attachment")))
        else:
            states[name] = decode(value, tensors)
    files = tuple(key for key in reader.parts[0].attachments if sidefiles.is_side_file(key) and only is None)
    for file in files:
        reader.verify_attachment(file)
    return Restored(manifest, states, reader.exact, files, [], reader.about, reader.unchanged)
