"""From a committed checkpoint into live objects: chosen by all ranks together, verified, then loaded.

Law: nothing is loaded before every rank has read and verified all it needs; a checkpoint that is
damaged is put aside by rank 0 with the reason and the next one is tried; state that doesn't fit is an
error that lists what differs. A run that has had checkpoints is never silently started from scratch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autoresume.checkpoint import sidefiles
from autoresume.checkpoint.discover import Judged, complete_commits, judge, listing, set_aside
from autoresume.checkpoint.persist import Guard
from autoresume.errors import AutoresumeError, CheckpointInvalid, NoValidCheckpoint, StateError
from autoresume.failpoints import reach
from autoresume.format import names, tree
from autoresume.format.manifest import Manifest
from autoresume.format.names import CheckpointName
from autoresume.storage.base import Storage
from autoresume.training.agreement import Ranks
from autoresume.training.reader import Box, CheckpointReader
from autoresume.training.state import decode, pickled, references

log = logging.getLogger("autoresume")

_VISIBLE_SECONDS = 60.0
Held = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""(offset, size, shape of the whole tensor) of what this rank holds of a sharded tensor."""


@dataclass
class Restored:
    """A verified checkpoint in memory, not yet in the live objects."""

    manifest: Manifest
    states: dict[str, Any]
    """name -> state dict, or the bytes of a pickled object."""
    exact: bool
    """False where this rank did not exist when the checkpoint was written."""
    files: tuple[str, ...]
    """Side files that it holds."""
    rejected: list[str]
    """Newer checkpoints that were not chosen, each with its reason."""


def choose_and_read(
    storage: Storage, run_id: str, ranks: Ranks, guard: Guard, wanted: Callable[[], Mapping[str, Held]]
) -> Restored | None:
    """The newest checkpoint that every rank can read, read; None if the run never had one.

    Every rank must call it. `wanted` gives the boxes of sharded tensors that this rank holds. Raises
    NoValidCheckpoint if there were checkpoints and none is left.
    """
    rejected: list[str] = []
    candidates = _Candidates(storage, run_id, guard, rejected) if ranks.rank == 0 else None
    while True:
        offer = told(ranks, candidates.next if candidates else None)
        rejected[:] = offer["rejected"]
        if offer["name"] is None:
            return None
        name = CheckpointName.parse(offer["name"])
        assert name is not None
        problem, restored = None, None
        try:
            manifest = _visible(storage, name, offer["digest"])
            restored = _read(storage, manifest, ranks.rank, wanted())
        except (CheckpointInvalid, OSError, EOFError) as error:
            problem = str(error)
        problems = ranks.gather(problem)
        if restored is not None and not any(problems):
            restored.rejected = rejected
            return restored
        if candidates is not None:
            candidates.reject(next(item for item in problems if item))


def told(ranks: Ranks, make: Callable[[], dict[str, Any]] | None) -> dict[str, Any]:
    """What rank 0 says, or the error that it met, raised on every rank."""
    value: dict[str, Any] = {}
    failure: BaseException | None = None
    if make is not None:
        try:
            value = make()
        except (AutoresumeError, OSError) as error:
            failure, value = error, {"error": str(error), "kind": type(error).__name__}
    value = ranks.broadcast(value)
    if failure is not None:
        raise failure
    if "error" in value:
        kind = NoValidCheckpoint if value["kind"] == "NoValidCheckpoint" else AutoresumeError
        raise kind(f"rank 0: {value['error']}")
    return value


class _Candidates:
    """Rank 0's list, newest first; what is damaged goes aside."""

    def __init__(self, storage: Storage, run_id: str, guard: Guard, rejected: list[str]) -> None:
        self.storage, self.run_id, self.guard, self.rejected = storage, run_id, guard, rejected
        self.left: list[CheckpointName] | None = None
        self.offered: Judged | None = None
        self.had_some = False

    def next(self) -> dict[str, Any]:
        if self.left is None:
            for name in complete_commits(self.storage, self.guard):
                log.info("checkpoint %s was written whole but not committed; completed it", name)
            self.left = listing(self.storage)
            self.had_some = bool(self.storage.list(names.ASIDE))
        while self.left:
            judged = judge(self.storage, self.left.pop(0), self.run_id)
            self.offered = judged
            if judged.problem is None and judged.manifest is not None:
                self.had_some = True
                return self._offer(str(judged.name), judged.manifest.digest)
            self.reject(judged.problem or "")
        if self.had_some:
            where = "; ".join(self.rejected) or f"see {names.ASIDE}/ in the run directory"
            raise NoValidCheckpoint(
                f"this run has had checkpoints, but none can be restored: {where}. It was not started from scratch. "
                f"Move a good checkpoint back into {names.CHECKPOINTS}/, or choose another run directory to start anew."
            )
        return self._offer(None, None)

    def _offer(self, name: str | None, digest: str | None) -> dict[str, Any]:
        return {"name": name, "digest": digest, "rejected": self.rejected}

    def reject(self, problem: str) -> None:
        assert self.offered is not None
        name = self.offered.name
        if self.storage.size(name.manifest) is None:
            # Never committed: what a killed save left. It is deleted after the next commit.
            log.warning("checkpoint %s is skipped: %s", name, problem)
            self.rejected.append(f"{name}: {problem}")
            return
        self.had_some = True
        folder = set_aside(self.storage, Judged(name, None, problem))
        log.warning("checkpoint %s is put aside to %s: %s", name, folder, problem)
        self.rejected.append(f"{name}: {problem}")


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


def _read(storage: Storage, manifest: Manifest, rank: int, boxes: Mapping[str, Held]) -> Restored:
    reader = CheckpointReader(storage, manifest, rank)
    reach("restore.chosen")
    wanted: dict[str, Box | None] = dict.fromkeys(references(reader.tree))
    other = []
    for key, (offset, size, whole) in boxes.items():
        if key in wanted:
            wanted[key] = (offset, size)
            stored = reader.describe(key).shape
            if stored != whole:
                other.append(f"{key} has shape {stored} in the checkpoint and {whole} here")
    if other:
        raise StateError("the sharded state in the checkpoint and here differ:\n  " + "\n  ".join(other[:20]))
    tensors = reader.read(wanted)
    states: dict[str, Any] = {}
    if not isinstance(reader.tree, dict):
        raise CheckpointInvalid("the state tree is not an object")
    for name, value in reader.tree.items():
        if isinstance(value, dict) and value.get(tree.TAG) == "pickled":
            states[name] = reader.attachment(value["attachment"])
        else:
            states[name] = decode(value, tensors)
    files = tuple(key for key in reader.parts[0].attachments if sidefiles.is_one(key))
    for file in files:
        reader.verify_attachment(file)
    return Restored(manifest, states, reader.exact, files, [])


def load(name: str, target: Any, state: Any) -> None:
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
            target.load_state_dict(_distributed(target, state))
    except StateError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"the stored state of {name!r} doesn't fit the live object: {error}") from error


def _check_module(name: str, module: torch.nn.Module, state: Any) -> None:
    """Names and shapes, both sides, before anything is changed."""
    if not isinstance(state, Mapping):
        raise StateError(f"the stored state of {name!r} is no module's")
    live = module.state_dict()
    lines = [f"only in the checkpoint: {key}" for key in state if key not in live]
    lines += [f"only in the live object: {key}" for key in live if key not in state]
    for key, value in live.items():
        stored = state.get(key)
        if isinstance(value, torch.Tensor) and isinstance(stored, torch.Tensor):
            whole = tuple(value.shape)
            local = tuple(_local(value).shape)
            if tuple(stored.shape) not in (whole, local):
                lines.append(f"{key} has shape {tuple(stored.shape)} in the checkpoint and {whole} here")
            elif stored.dtype != value.dtype:
                lines.append(f"{key} has dtype {stored.dtype} in the checkpoint and {value.dtype} here")
    if lines:
        shown = "\n  ".join(lines[:20]) + (f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise StateError(
            f"{name!r} in the checkpoint and here differ in {len(lines)} places:\n  {shown}\n"
            "Nothing was loaded. Build the model as it was, or choose another run directory to start anew."
        )


# -- sharded tensors --------------------------------------------------------------------------------


def _local(value: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def boxes(objects: Mapping[str, Any]) -> dict[str, Held]:
    """The boxes of sharded tensors (DTensor) that this rank holds, by key; also of optimizer state that does
    not exist yet, which is sharded as its parameter is."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    found: dict[str, Held] = {}

    def box(value: DTensor) -> Held:
        size, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
        return tuple(int(item) for item in offset), tuple(int(item) for item in size), tuple(value.shape)

    for name, target in objects.items():
        if isinstance(target, torch.nn.Module):
            for key, value in target.state_dict().items():
                if isinstance(value, DTensor):
                    found[tree.join(name, key)] = box(value)
        elif isinstance(target, torch.optim.Optimizer):
            for index, parameter in enumerate(_parameters(target)):
                if isinstance(parameter, DTensor):
                    for slot in _slots(target, parameter):
                        found[tree.join(tree.join(f"{name}/state", index), slot)] = box(parameter)
    return found


_COMMON_SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "sum")


def _slots(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> Iterable[str]:
    live = [
        key
        for key, value in optimizer.state.get(parameter, {}).items()
        if getattr(value, "shape", None) == parameter.shape
    ]
    return live or _COMMON_SLOTS


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _distributed(target: Any, state: Any) -> Any:
    """`state` with local shards wrapped as the live object's DTensors are."""
    from torch.distributed.tensor import DTensor

    def wrap(value: Any, like: Any) -> Any:
        if not isinstance(like, DTensor) or not isinstance(value, torch.Tensor) or isinstance(value, DTensor):
            return value
        if value.dim() == 0 and like.dim() > 0:
            return value
        local = value.to(like.to_local().device)
        return DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    if isinstance(target, torch.nn.Module):
        live = target.state_dict()
        if any(isinstance(value, DTensor) for value in live.values()):
            return {key: wrap(value, live.get(key)) for key, value in state.items()}
    elif isinstance(target, torch.optim.Optimizer):
        parameters = _parameters(target)
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            wrapped = {
                index: {key: wrap(value, parameters[index]) for key, value in slots.items()}
                for index, slots in state["state"].items()
            }
            return {**state, "state": wrapped}
    return state
