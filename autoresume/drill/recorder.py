"""The record of a drill: what a rank did in each step, one JSON line a step boundary, and the moments of its end.

Law: off, there is none of it. On, it draws no random numbers and changes no state. A step's line is written before the
boundary saves or leaves, so that it is there whatever follows. At the moment that the drill has chosen for this life
the rank waits until the driver has done what it wanted to.

The drill's folder (AUTORESUME_DRILL) has `life.json`, written by the driver before each life: `life` (its number),
`records` (a folder), `until` (a step, or null), `fix` (what is tried), `moment` ({at, step, rank}, or null). On another
machine than the driver's the rank does itself what is to be done: `moment` has `kills` (rank, daemon or node), and may
have `point`, a failpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from autoresume.audit import untracked
from autoresume.audit.audit import Beginning
from autoresume.base import failpoints
from autoresume.data import batch_observer
from autoresume.errors import StateError
from autoresume.format.digest import canonical, digest
from autoresume.handoff.mailbox import NODE_FOLDER_VARIABLE, Mailbox
from autoresume.state import rng
from autoresume.state.capture import capture
from autoresume.state.pickled import pickled
from autoresume.state.stateful import unwrap

VARIABLE = "AUTORESUME_DRILL"
_POLL_SECONDS = 0.005
_PATIENCE_SECONDS = 120.0
_FROZEN = 1_700_000_000.0


class Recorder:
    """Of one rank in one life."""

    def __init__(self, folder: Path, rank: int) -> None:
        life = json.loads((folder / "life.json").read_text())
        self.folder, self.rank = folder, rank
        self.until: int | None = life["until"]
        self._moment: dict[str, Any] | None = life["moment"]
        self._life = int(life["life"])
        records = Path(life["records"])
        records.mkdir(parents=True, exist_ok=True)
        self._file = os.open(records / f"rank-{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._step = 0
        self._number = 0
        self._evaluations = 0
        self._logged: dict[str, Any] = {}
        self._losses: list[str] = []
        self._optimizers: list[dict[str, Any]] = []
        self._names: dict[int, str] = {}
        self._rng: dict[str, str] | None = None
        if "kernels" in life["fix"]:
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.set_num_threads(1)
        if self._moment is not None and self._moment.get("point") and self._moment["rank"] == rank:
            failpoints.set_observer(self._at_failpoint)
        self._watch = batch_observer.BatchObserver(untracked.content_digest)
        batch_observer.install_observer(self._watch)
        register_optimizer_step_pre_hook(self._optimizer_steps)
        torch.nn.modules.module.register_module_forward_pre_hook(self._forward)
        self._backward = torch.autograd.backward
        torch.autograd.backward = self._backwards
        self._reached("start")

    @classmethod
    def of_environment(cls, rank: int) -> Recorder | None:
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder), rank) if folder else None

    # -- what happens -----------------------------------------------------------------------------

    def restored(self, began: Beginning, rank: int, objects: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """This life begins with these objects."""
        self._step, self._number = began.step, began.life
        self._names = {id(thing): name for name, value in objects.items() for thing in untracked.inside(value)}
        self._forget()  # what DDP's order of summation was settled with, say
        self._write({"kind": "begin", **self._state(objects, state)})

    def boundary(self, step: int, epoch: int, objects: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """`step` is complete."""
        self._names.update({id(thing): name for name, value in objects.items() for thing in untracked.inside(value)})
        tracked = untracked.ids_of(objects, {})
        seen = self._watch.take()
        self._step = step
        line = {
            "kind": "step",
            "epoch": epoch,
            "indices": [indices for indices, _ in seen],
            "batches": [text for _, text in seen],
            "rng_forward": self._rng,
            "losses": self._losses,
            "optimizers": self._optimizers,
            "logged": self._logged,
            "evaluations": self._evaluations,
            "workers": self._watch.workers,
            "tracked_optimizers": [name for name, value in objects.items() if isinstance(value, torch.optim.Optimizer)],
            "variables": untracked.look_at_frames(tracked).found,
            **self._state(objects, state),
        }
        self._forget()
        self._write(line)
        self._reached("step")

    def _forget(self) -> None:
        self._losses, self._optimizers, self._logged, self._rng = [], [], {}, None
        self._evaluations = 0
        self._watch.forget()

    def logged(self, values: Mapping[str, Any]) -> None:
        self._logged.update({name: _plain(value) for name, value in values.items()})

    def saving(self, step: int, objects: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """All is seen at boundaries."""

    def close(self, finished: bool) -> None:
        """The process ends with its run."""

    def over(self, step: int) -> bool:
        """The drill looks no further."""
        return self.until is not None and step >= self.until

    # -- hooks ------------------------------------------------------------------------------------

    def _optimizer_steps(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        gradients, options = [], []
        for group in optimizer.param_groups:
            gradients += [digest(untracked.tensor_bytes(p.grad)) for p in group["params"] if p.grad is not None]
            options.append({key: _plain(value) for key, value in group.items() if key != "params"})
        name = self._names.get(id(optimizer))
        self._optimizers.append(
            {
                "name": name,
                "type": type(optimizer).__name__,
                "gradients": digest("".join(gradients).encode()),
                "options": options,
            }
        )

    def _forward(self, module: torch.nn.Module, args: Any) -> None:
        if self._rng is None:
            self._rng = _drawn_from()
        if torch.is_grad_enabled():
            self._reached("forward")
        else:
            self._evaluations += 1
            self._reached("evaluation")

    def _backwards(self, tensors: Any, *args: Any, **kwargs: Any) -> None:
        for tensor in [tensors] if isinstance(tensors, torch.Tensor) else list(tensors):
            if isinstance(tensor, torch.Tensor) and tensor.numel() == 1:
                self._losses.append(_hex(tensor.detach()))
        self._backward(tensors, *args, **kwargs)

    # -- what is written --------------------------------------------------------------------------

    def _state(self, objects: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, str] = {}
        for name, value in objects.items():
            found.update(_digests(name, value))
        return {
            "objects": found,
            "state": {name: untracked.content_digest(value) for name, value in state.items()},
            "shown": {name: untracked.short(value) for name, value in state.items()},
            "rng": _drawn_from(),
        }

    def _write(self, line: dict[str, Any]) -> None:
        head = {"step": self._step, "life": self._life, "incarnation": self._number, "time": time.monotonic()}
        # The line before may have been torn.
        os.write(self._file, b"\n" + json.dumps({**head, **line}).encode() + b"\n")

    # -- the moment -------------------------------------------------------------------------------

    def _reached(self, at: str) -> None:
        moment = self._moment
        if moment is None or moment["at"] != at or moment["rank"] != self.rank:
            return
        # In the middle of a step, or in an evaluation, is after that many steps were completed.
        if at != "start" and self._step < moment["step"]:
            return
        self._strike(moment, at)

    def _at_failpoint(self, name: str) -> None:
        moment = self._moment
        if moment is not None and name == moment["point"]:
            self._strike(moment, moment["at"])

    def _strike(self, moment: dict[str, Any], at: str) -> None:
        self._moment = None
        told = self.folder / f"reached-{self._life}.json"
        temporary = told.with_suffix(".tmp")
        temporary.write_text(json.dumps({"pid": os.getpid(), "step": self._step, "at": at}))
        temporary.rename(told)
        released, deadline = self.folder / f"released-{self._life}", time.monotonic() + _PATIENCE_SECONDS
        while not released.exists() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if moment.get("kills"):
            _kill(moment["kills"])


def _kill(what: str) -> None:
    """This rank, the daemon of its node, or all that the daemon has there."""
    folder = os.environ.get(NODE_FOLDER_VARIABLE)
    daemon = Mailbox(Path(folder)).receive("daemon") if folder else None
    victims = [psutil.Process(int(daemon["pid"]))] if daemon is not None and what != "rank" else []
    if victims and what == "node":
        victims += victims[0].children(recursive=True)
    for one in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.pid != os.getpid():
                one.kill()
    if what != "daemon" or not victims:
        os.kill(os.getpid(), signal.SIGKILL)


def freeze_clock() -> None:
    """Where the drill tries whether the time of day is what differs: each look is a microsecond after the last one."""
    folder = os.environ[VARIABLE]
    if "clock" not in json.loads((Path(folder) / "life.json").read_text())["fix"]:
        return
    looks = iter(range(1, 1 << 62))
    time.time = lambda: _FROZEN + next(looks) * 1e-6
    time.time_ns = lambda: int(_FROZEN * 1e9) + next(looks) * 1000


def _drawn_from() -> dict[str, str]:
    """The generators, but for those that stand as they were seeded, which by itself means nothing."""
    unused = rng.never_drawn()
    return {name: text for name, text in rng.rng_digests().items() if name not in unused}


def _digests(name: str, value: Any) -> dict[str, str]:
    """Of each tensor of an object, by key, and of all else that its state holds, by its name."""
    if isinstance(value, pickled):
        return {name: untracked.content_digest(value.value)}  # its pickle is another one in each process
    try:
        captured = capture({name: unwrap(value)}, frozenset(), frozenset())
    except StateError as error:
        return {name: f"unreadable: {error}"}
    found = {leaf.key: digest(untracked.tensor_bytes(leaf.tensor)) for leaf in captured.leaves}
    return {name: digest(canonical(captured.tree)), **found}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _hex(value.detach()) if value.numel() == 1 else f"{list(value.shape)}"
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    return repr(value)


def _hex(value: torch.Tensor) -> str:
    """A number bit for bit, whatever its type."""
    item = value.item()
    return item.hex() if isinstance(item, float) else repr(item)
