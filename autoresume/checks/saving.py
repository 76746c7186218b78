"""How large the state is, and whether a last save fits the time that a preemption leaves.

Law: the size is that of the newest valid checkpoint, or what the user says; the estimate is pure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autoresume.base.findings import Finding, Verdict, format_bytes
from autoresume.checkpoint.discover import judge, list_checkpoints
from autoresume.checks.folder import Writing
from autoresume.format import names
from autoresume.format.manifest import Manifest
from autoresume.storage.local import LocalStorage

_FILES = 4
"""Small durable writes of a commit, one after the other: part, manifest, and what names them."""
_SAY_SIZE = "Give --state-size, e.g. --state-size 1.5GB."
_TORCHRUN_SECONDS = 30.0


@dataclass(frozen=True)
class State:
    """What a checkpoint holds, in all, in bytes."""

    bytes: int
    told_by: str


def newest(folder: Path) -> State | None:
    """Of the run that lies in `folder`, or of the newest of those below it."""
    found = max((one for run in _runs(folder) for one in _newest(run)), key=lambda one: one.time, default=None)
    return None if found is None else State(found.total_bytes, f"checkpoint {found.checkpoint}")


def _runs(folder: Path) -> list[Path]:
    if os.path.isfile(folder / names.RUN):
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{names.RUN}"))


def _newest(run: Path) -> Iterator[Manifest]:
    storage = LocalStorage(run)
    try:
        run_id = str(json.loads(storage.read(names.RUN))["run_id"])
        for name in list_checkpoints(storage):
            judged = judge(storage, name, run_id)
            if judged.problem is None and judged.manifest is not None:
                yield judged.manifest
                return
    except (OSError, ValueError, KeyError, TypeError):
        return  # no run, or one of somebody else; `autoresume ls` says what is wrong with it


def state_finding(state: State | None, nodes: int) -> Finding:
    if state is None:
        missing = "what depends on it can't be judged: memory, free space, and whether a last save fits"
        return Finding("state", Verdict.UNKNOWN, "no checkpoint to see its size by", missing, _SAY_SIZE)
    share = f"{format_bytes(share_of(state, nodes))} on each of {nodes} nodes" if nodes > 1 else "all of it on one node"
    return Finding("state", Verdict.PASS, f"{format_bytes(state.bytes)}, by {state.told_by}", share)


def share_of(state: State, nodes: int) -> int:
    """What a node holds of it, at least: state that is kept by each rank may be spread otherwise."""
    return -(-state.bytes // nodes)


def seconds(writing: Writing, share: int) -> float | None:
    """What this node takes from a snapshot to its commit; None where the writing could not be measured."""
    if writing.bytes_per_second is None:
        return None
    return share / writing.bytes_per_second + _FILES * (writing.small_seconds or 0.0)


def fits(estimate: float | None, window: float | None, share: int | None) -> Finding:
    """`window`: the seconds between the first signal and the kill, if a preemption leaves any."""
    name = "last save"
    if share is None:
        return Finding(name, Verdict.UNKNOWN, "the size of the state is not known", "it can't be estimated", _SAY_SIZE)
    if estimate is None:
        return Finding(name, Verdict.UNKNOWN, "the speed of writing is not known", "it can't be estimated")
    found = f"about {estimate:.1f} s for this node's {format_bytes(share)}"
    if window is None:
        return Finding(name, Verdict.PASS, found, "no grace time is known to compare that with")
    lost = "steps since the last save are done again after a preemption"
    often = "Save often (save_every), use more nodes, or a partition with a longer grace time."
    if estimate > window:
        return Finding(name, Verdict.WARN, found, f"longer than the {window:.0f} s that are left: {lost}", often)
    if estimate > window / 2:
        close = f"more than half of the {window:.0f} s that are left, and other jobs write as well: if it fails, {lost}"
        return Finding(name, Verdict.WARN, found, close, often)
    return Finding(name, Verdict.PASS, found, f"of {window:.0f} s that are left")


def torchrun(configured: str | None, estimate: float | None) -> Finding:
    """torchrun without the node daemon kills its workers some time after a signal; `configured` is the variable."""
    name, daemon = "plain torchrun", "Start it by srun autoresume node -- torchrun ..."
    try:
        timeout = float(configured) if configured else _TORCHRUN_SECONDS
    except ValueError:
        remedy = "Set seconds, e.g. 120, or unset it."
        wrong = f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={configured}"
        return Finding(name, Verdict.FAIL, wrong, "torchrun does not start with it", remedy)
    found = f"it kills its workers {timeout:.0f} s after a signal" + ("" if configured else ", by default")
    if estimate is not None and estimate > timeout / 2:
        longer = f"{daemon}, which waits for the save; else set TORCH_ELASTIC_SHUTDOWN_TIMEOUT."
        return Finding(name, Verdict.WARN, found, "without the node daemon a last save may be cut short by it", longer)
    ends = "without the node daemon the job then ends by itself, and Slurm does not run it again in a grace time"
    return Finding(name, Verdict.PASS, found, ends, daemon)
