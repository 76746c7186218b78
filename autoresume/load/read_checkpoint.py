"""From a committed checkpoint into live objects: chosen by all ranks together, verified, then loaded.

Law: nothing is loaded before every rank has read and verified all it needs: what is read into live tensors
already is overwritten by the next candidate, or training does not begin. A checkpoint that is
damaged is put aside by rank 0 with the reason and the next one is tried; state that doesn't fit is an
error that lists what differs. A run that has had checkpoints is never silently started from scratch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autoresume.base.failpoints import failpoint
from autoresume.base.spans import span
from autoresume.checkpoint import sidefiles
from autoresume.checkpoint.abandon import has_manifest
from autoresume.checkpoint.discover import Judged, complete_commits, judge, list_checkpoints, set_aside
from autoresume.checkpoint.incarnation import numbers
from autoresume.checkpoint.persist import Guard
from autoresume.checkpoint.retain import collect_unpublished
from autoresume.errors import AutoresumeError, CheckpointInvalid, NoValidCheckpoint, StateError, StorageFailed
from autoresume.format import names, tree
from autoresume.format.manifest import Manifest
from autoresume.format.names import CheckpointName
from autoresume.handoff import kept_snapshots
from autoresume.handoff.mailbox import Mailbox
from autoresume.load.reader import Box, CheckpointReader
from autoresume.ranks.agreement import Ranks
from autoresume.state.in_place import in_place_targets, mismatches
from autoresume.state.pickled import pickled
from autoresume.state.sharded import cut_to_shards, local_shards, parameters, shard_for
from autoresume.state.state import decode, tensor_keys
from autoresume.storage.base import Storage

log = logging.getLogger("autoresume")

_VISIBLE_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 1.0


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
    candidates = _Candidates(storage, run_id, guard, rejected) if ranks.rank == 0 else None
    while True:
        offer = ask_rank_0(ranks, candidates.next if candidates else None)
        rejected[:] = offer["rejected"]
        if offer["name"] is None:
            return None
        name = CheckpointName.parse(offer["name"])
        assert name is not None
        restored, problem = _read_together(storage, name, offer["digest"], ranks, objects, mailbox, None, into_live)
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
    restored, problem = _read_together(storage, name, digest, ranks, objects, None, only, into_live)
    if restored is None:
        raise CheckpointInvalid(f"{name} of {storage!r} can't be restored: {problem}. Nothing was started.")
    return restored


def read_without_ranks(
    storage: Storage, manifest: Manifest, only: frozenset[str] | None = None, rank: int = 0
) -> Restored:
    """The states of a checkpoint as `rank` had them, with all of what was sharded, for a process that is no rank.

    Raises CheckpointInvalid.
    """
    return _read(storage, manifest, rank, {}, None, only)


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
    objects: Mapping[str, Any],
    mailbox: Mailbox | None,
    only: frozenset[str] | None = None,
    into_live: bool = True,
) -> tuple[Restored | None, str]:
    """What this rank has read if all could read theirs; else None, and the first reason."""
    problem, restored = None, None
    try:
        with span("read"):
            manifest = _visible(storage, name, digest)
            restored = _read(storage, manifest, ranks.rank, objects, mailbox, only, into_live)
    except (CheckpointInvalid, OSError, EOFError) as error:
        problem = str(error)
    problems = ranks.gather(problem)
    if restored is not None and not any(problems):
        return restored, ""
    return None, next(item for item in problems if item)


def ask_rank_0(ranks: Ranks, make: Callable[[], dict[str, Any]] | None) -> dict[str, Any]:
    """What rank 0 says, or the error that it met, raised on every rank."""
    value: dict[str, Any] = {}
    failure: BaseException | None = None
    if make is not None:
        try:
            value = make()
        except AutoresumeError as error:
            failure, value = error, {"error": str(error), "kind": type(error).__name__}
        except OSError as error:
            failure = StorageFailed(
                f"the run directory can't be used: {error}. Nothing was started or lost; once it can be written "
                "(free space, permissions), start the same command again."
            )
            value = {"error": str(failure), "kind": "StorageFailed"}
    value = ranks.broadcast(value)
    if failure is not None:
        raise failure
    if "error" in value:
        kind = NoValidCheckpoint if value["kind"] == "NoValidCheckpoint" else AutoresumeError
        raise kind(f"rank 0: {value['error']}")
    return value


class _Candidates:
    """Rank 0's list, newest first. What is damaged goes aside when another takes its place: where none does, the
    storage may be what fails, and what it holds be as good as ever."""

    def __init__(self, storage: Storage, run_id: str, guard: Guard, rejected: list[str]) -> None:
        self.storage, self.run_id, self.guard, self.rejected = storage, run_id, guard, rejected
        self.left: list[CheckpointName] | None = None
        self.offered: Judged | None = None
        self.had_some = False
        self._refused: list[Judged] = []
        self._vanished: set[CheckpointName] = set()
        self._deadline = 0.0
        """How long to look for what has taken the place of the vanished."""

    def _list(self) -> list[CheckpointName]:
        for name in complete_commits(self.storage, self.guard):
            log.info("checkpoint %s was written whole but not committed; completed it", name)
        return list_checkpoints(self.storage)

    def next(self) -> dict[str, Any]:
        if self.left is None:
            collect_unpublished(self.storage, max(numbers(self.storage), default=0), self.guard)
            self.left = self._list()
            self.had_some = bool(self.storage.list(names.ASIDE))
        while self.left or self._look_again():
            name = self.left.pop(0)
            judged = judge(self.storage, name, self.run_id)
            if judged.uncommitted and has_manifest(self.storage, name):
                judged = judge(self.storage, name, self.run_id)  # by a life that is over, just now
            self.offered = judged
            if judged.problem is None and judged.manifest is not None:
                self.had_some = True
                return self._offer(str(judged.name), judged.manifest.digest)
            self.reject(judged.problem or "")
        self.guard()  # a successor may have pruned what was here to be chosen
        if self.had_some:
            where = "; ".join(self.rejected) or f"see {names.ASIDE}/ in the run directory"
            left = "They were left where they are: if the storage fails, start again when it is well. "
            raise NoValidCheckpoint(
                f"this run has had checkpoints, but none can be restored: {where}. It was not started from scratch. "
                + (left if self._refused else "")
                + f"Move a good checkpoint back into {names.CHECKPOINTS}/, or choose another run directory to begin."
            )
        return self._offer(None, None)

    def _look_again(self) -> bool:
        """Whether there is something to try after all. What was listed and is gone was pruned when something newer was
        committed: a node that keeps listings for a while (NFS) sees that one later."""
        while self._vanished and time.monotonic() < self._deadline:
            self.guard()
            time.sleep(_LOOK_AGAIN_SECONDS)
            listed = self._list()
            self._vanished.intersection_update(listed)
            self.left = [name for name in listed if has_manifest(self.storage, name)]
            if self.left:
                return True
        return False

    def _offer(self, name: str | None, digest: str | None) -> dict[str, Any]:
        return {"name": name, "digest": digest, "rejected": self.rejected}

    def reject(self, problem: str) -> None:
        assert self.offered is not None
        name = self.offered.name
        gone = not self.storage.list(name.folder)  # also where what was looked up before still says otherwise (NFS)
        if gone:
            self._vanished.add(name)
            self._deadline = time.monotonic() + _VISIBLE_SECONDS
        if gone or self.offered.uncommitted:
            # Never committed: what a killed save left. It is deleted after the next commit.
            log.warning("checkpoint %s is skipped: %s", name, problem)
            self.rejected.append(f"{name}: {problem}")
            return
        self.had_some = True
        log.warning("checkpoint %s can't be restored: %s", name, problem)
        self._refused.append(Judged(name, None, problem))
        self.rejected.append(f"{name}: {problem}")

    def settle(self) -> None:
        """The one that was offered last is restored. Raises StaleIncarnation."""
        if self._refused:
            self.guard()
        for judged in self._refused:
            log.warning("checkpoint %s is put aside to %s", judged.name, set_aside(self.storage, judged))
        self._refused.clear()


def _visible(storage: Storage, name: CheckpointName, digest: str) -> Manifest:
    """The manifest that rank 0 chose, as soon as this rank's node sees it."""
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while True:
        try:
            manifest = Manifest.from_bytes(storage.read(name.manifest))
            if manifest.digest == digest:
                return manifest
            problem = "its manifest is another one than rank 0 sees"
        except (CheckpointInvalid, OSError) as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise CheckpointInvalid(f"a rank can't see it after {_VISIBLE_SECONDS:.0f} s: {problem}")
        time.sleep(0.1)


def _read(
    storage: Storage,
    manifest: Manifest,
    rank: int,
    objects: Mapping[str, Any],
    mailbox: Mailbox | None = None,
    only: frozenset[str] | None = None,
    into_live: bool = True,
) -> Restored:
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


def load_state(name: str, target: Any, state: Any) -> None:
    """Load one object's state. Raises StateError that says what doesn't fit."""
    if isinstance(target, pickled) != isinstance(state, bytes):
        raise StateError(
            f"{name!r} was stored {'as a pickle' if isinstance(state, bytes) else 'without pickle'}, but is tracked "
            f"{'with' if isinstance(target, pickled) else 'without'} pickled(...); track it as it was stored"
        )
    try:
        if isinstance(target, pickled):
            target.load(state)
            return
        if isinstance(target, torch.nn.Module):
            _check_module(name, target, state)
        with torch.no_grad():
            state = cut_to_shards(target, state)
            options = [set(group) for group in getattr(target, "param_groups", ())]
            target.load_state_dict(state)
            if isinstance(target, torch.optim.Optimizer):
                _check_options(name, target, options)
                _keep_values(target, state)
    except StateError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"the stored state of {name!r} doesn't fit the live object: {error}") from error


def _check_options(name: str, optimizer: torch.optim.Optimizer, options: list[set[str]]) -> None:
    """Loading replaces the groups' options, also by those of another kind of optimizer, which lacks some of its own."""
    lost = sorted({option for own, group in zip(options, optimizer.param_groups) for option in own - set(group)})
    if lost:
        raise StateError(
            f"the stored state of {name!r} is of another kind of optimizer than {type(optimizer).__name__}: it has no "
            f"{', '.join(lost)}. Build it as it was, or let it begin anew with restore.fresh={name!r}"
        )


def _keep_values(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Loading moves state to its parameter's device: on the meta device, where parameters wait to be materialised
    (in place, as FSDP's are), it would lose its values."""
    for index, parameter in enumerate(parameters(optimizer)):
        if parameter.device.type == "meta":
            optimizer.state[parameter].update(state["state"].get(index, {}))


def _check_module(name: str, module: torch.nn.Module, state: Any) -> None:
    """Names and shapes, both sides, before anything is changed."""
    if not isinstance(state, Mapping):
        raise StateError(f"the stored state of {name!r} is no module's")
    lines = mismatches(state, module.state_dict())
    if lines:
        shown = "\n  ".join(lines[:20]) + (f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise StateError(
            f"{name!r} in the checkpoint and here differ in {len(lines)} places:\n  {shown}\n"
            f"Nothing was loaded. Build the model as it was; or take over what fits with restore.strict={{{name!r}: "
            "false}; or choose another run directory to start anew."
        )
