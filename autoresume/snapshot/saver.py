"""Taking snapshots at step boundaries, while training goes on.

Law: a save is capture, plan (only when the state has changed its form), copies into a free arena, and a hand-over.
What changes in a forward pass is copied at the boundary; what only an optimizer's step changes is copied while the
next forward and backward passes go on, and the step waits for what is left of it. A copy whose source was written
to meanwhile is found out and never handed over. At most one snapshot is being taken and one being persisted.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from autoresume.base.failpoints import failpoint
from autoresume.base.spans import span
from autoresume.checkpoint.persist import Snapshot
from autoresume.format.digest import digest
from autoresume.format.manifest import Chunk, Labels
from autoresume.format.names import CheckpointName, pickle_file
from autoresume.handoff.arena import Arena
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot import layout
from autoresume.snapshot.arenas import Arenas
from autoresume.snapshot.copies import Copies, Copying, Recipe, WriteDetector, copy_threads
from autoresume.snapshot.devices import Streams, Transfer, capturing, current_device
from autoresume.snapshot.recapture import Recapture, without_collections
from autoresume.snapshot.recapture import Recaptured as Captured
from autoresume.snapshot.sinks import Sealed, Sink
from autoresume.snapshot.unchanged import Unchanged
from autoresume.state.state import Leaf, capture, known_equal_storages

log = logging.getLogger("autoresume")


@dataclass(frozen=True)
class SnapshotTaken:
    """A snapshot that was taken: `stall_seconds` is how long training stood still for it at the boundary."""

    name: CheckpointName
    bytes: int
    stall_seconds: float


@dataclass(frozen=True)
class Logged:
    """What was logged up to a snapshot. `sync`: files of the run that are made durable before it, and how long they
    must be then."""

    labels: Labels = field(default_factory=Labels)
    sync: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Begun:
    """Copies under way."""

    copying: Copying
    guard: WriteDetector
    now: Transfer
    late: Transfer
    """What an optimizer's step has to wait for on its device."""


@dataclass
class _Pending:
    """A snapshot whose copies are not joined yet."""

    sealed: Sealed
    looked_at: Sequence[Chunk]
    begun: _Begun
    tensors: list[torch.Tensor]
    """Kept alive until they are copied."""
    whole: Future[bool] | None = None
    """Comes true when it was handed over; false when it was torn."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    torn: bool | None = None

    def join(self) -> bool:
        """Copy what is left in the host's memory; whether what was copied is what was there at the boundary. It is
        judged once, before anybody who joins goes on to change it."""
        self.begun.copying.join()
        with self.lock:
            if self.torn is None:
                self.torn = self.begun.guard.written()
        return not self.torn

    def finish(self) -> bool:
        """Wait for the devices, too, and judge what they copied only then: they run behind the host."""
        self.begun.copying.join()
        self.begun.now.wait()
        self.begun.late.wait()
        return self.join() and not self.begun.late.written()


class Saver:
    """Snapshots of one rank. `fallback` makes the sink that is used when tmpfs is too small for the arenas."""

    def __init__(
        self,
        run_id: str,
        ranks: Ranks,
        sink: Sink,
        arena_folder: Path | None,
        fallback: Callable[[], Sink],
        unchanged: Unchanged | None = None,
    ) -> None:
        self.run_id, self.ranks, self.sink = run_id, ranks, sink
        self.torn: set[str] = set()
        """Names of snapshots that were given up, because their memory changed while it was copied."""
        self.unchanged = unchanged or Unchanged()
        self.overlaps = True
        self._trusts_unchanged = True
        self.joined_seconds = 0.0
        """How long optimizer steps have waited for copies since the last save."""
        self._fallback = fallback
        self._arenas = Arenas(ranks.rank, arena_folder, lambda: self.sink, self.fall_back)
        self._threads = copy_threads()
        self._pool = ThreadPoolExecutor(self._threads + 1, "autoresume-copy", self._use_device)
        self._device: int | None = None
        self._streams = Streams()
        self._recapture = Recapture()
        self._plan: layout.Plan | None = None
        self._plan_form: object = None
        self._plan_unchanged: frozenset[str] = frozenset()
        self._unverified: list[Leaf] | None = None
        """What was planned ahead, until the ranks meet at the first save."""
        self._split: str | None = None
        self._demoted: frozenset[str] = frozenset()
        self._known: frozenset[int] = frozenset()
        self._known_for: tuple[Any, ...] | None = None
        self._pending: _Pending | None = None
        self._stepping: dict[int, torch.optim.Optimizer] = {}
        self._stepped: dict[int, torch.optim.Optimizer] = {}
        """Optimizers that have stepped since the last boundary, and before it, since the one before."""
        self._recipes: WeakKeyDictionary[Arena, Recipe] = WeakKeyDictionary()
        self._recipes_for: tuple[Any, ...] | None = None
        self._late: frozenset[int] = frozenset()
        self._late_for: tuple[Any, ...] | None = None
        self._hook = register_optimizer_step_pre_hook(self._before_step)

    def prepare(self, objects: Mapping[str, Any], promised: frozenset[str]) -> None:
        """Make ready for the first save what takes long: the layout, and memory for it, in the background."""
        with without_collections():
            captured = self._capture(objects, promised)
            if captured.leaves is None or self._plan is not None:
                return
            self._plan, self._plan_form = self._make_plan(captured.leaves), captured.form
        self._unverified = captured.leaves
        self._arenas.prepare(self._plan.bytes, self._pool)

    def save(
        self,
        name: CheckpointName,
        objects: Mapping[str, Any],
        promised: frozenset[str],
        about: dict[str, Any],
        files: tuple[str, ...] = (),
        urgent: bool = True,
        logged: Callable[[], Logged] = Logged,
    ) -> SnapshotTaken:
        """Take a snapshot of `objects`, and hand it over to be persisted as `name`. Nothing is durable yet.

        Unless it is `urgent` it may be handed over only later, while training goes on; `settle` waits for that.
        `logged` may wait for a device, and is asked when that has been told what to copy: it goes on meanwhile.
        Raises StateError for state that can't be stored.
        """
        began = time.monotonic()
        failpoint("save.begin")
        self.finish_handover()
        self.unchanged.finish_comparing()
        if self._plan_unchanged != self.unchanged.names:
            self._recapture.forget()  # some tensors go to another file
        self.joined_seconds = 0.0
        with without_collections():
            with span("capture"):
                captured = self._capture(objects, promised)
            with span("plan"):
                plan = self._planned(captured)
        with span("wait for memory"):
            arena = self._arenas.acquire(plan.bytes)
        image = arena.view(plan.bytes)
        plan.write_headers(image)
        late = frozenset[int]() if urgent or not self.overlaps else self._stays(captured, plan, objects)
        with span("copy at the boundary"):
            begun = self._begin(self._recipe(captured, plan, arena, late).copies(captured.tensors))
        waits = time.monotonic()
        told = logged()
        waited = time.monotonic() - waits
        rank = self.ranks.rank
        snapshot = Snapshot(
            run_id=self.run_id,
            checkpoint=name,
            rank=rank,
            world_size=self.ranks.world_size,
            time=round(time.time(), 3),
            image=image,
            chunks=plan.chunks_json,
            tree=captured.tree,
            about=about,
            attachments={key: (pickle_file(rank, key), data) for key, data in captured.attachments.items()},
            files=files,
            sync=dict(told.sync),
            labels=told.labels,
            first_bytes=plan.first_bytes,
        )
        self._complete(begun, captured.tensors, Sealed(snapshot, arena), () if urgent else plan.chunks)
        if urgent:
            self.finish_handover()
        return SnapshotTaken(name, snapshot.bytes, time.monotonic() - began - waited)

    def check(self, objects: Mapping[str, Any], promised: frozenset[str]) -> int:
        """Raise now what `save` would raise later; the bytes of this rank's state."""
        leaves = capture(objects, frozenset(), promised).leaves
        return sum(leaf.tensor.numel() * leaf.tensor.element_size() for leaf in leaves)

    def at_boundary(self) -> None:
        """At every step boundary, before anything else."""
        self._stepped, self._stepping = self._stepping, {}
        if self._pending is not None and self._pending.whole is not None and self._pending.whole.done():
            self.finish_handover()

    def finish_handover(self) -> None:
        """Wait until the snapshot that is being taken is handed over, or given up."""
        pending, self._pending = self._pending, None
        if pending is None or pending.whole is None:
            return
        pending.join()
        try:
            whole = pending.whole.result()
        except OSError as error:
            self._hand_over_here(pending.sealed, error)
            return
        if not whole:
            # What seemed to be frozen is suspected first, where there is such.
            self.overlaps = self._trusts_unchanged and pending.sealed.snapshot.first_bytes is not None
            self._trusts_unchanged = False
            self.torn.add(str(pending.sealed.snapshot.checkpoint))
            log.warning(
                "the snapshot of step %d is given up: this script writes to its parameters, %sor to the optimizer's "
                "state, between a step boundary and the next optimizer.step(), while they were being copied. From now "
                "on saves copy %s at the boundary, which takes a little longer.",
                pending.sealed.snapshot.checkpoint.step,
                "to what was the same in several saves, " if self.overlaps else "",
                "what seemed to be frozen" if self.overlaps else "everything",
            )

    def close(self) -> None:
        """Arenas in the daemon's folder stay: it keeps them for the ranks that may come next."""
        self._hook.remove()
        self.finish_handover()
        self.unchanged.finish_comparing()
        self._recipes.clear()
        self.sink.close()
        self._arenas.close()
        self._pool.shutdown()

    def fall_back(self, why: str) -> None:
        """Go on without the daemon and its memory: this rank persists by itself."""
        before = self.sink
        self.finish_handover()
        if self.sink is not before:
            return  # what was being copied could not be handed over either, and has brought us here already
        log.warning("%s", why)
        self.unchanged.finish_comparing()
        self.sink = self._fallback()
        self._arenas.use_own_memory()

    def _use_device(self) -> None:
        """In each thread of the pool: one that pins memory, or waits for a device, would else make a context on the
        first device, which belongs to another rank."""
        if self._device is not None:
            torch.cuda.set_device(self._device)

    # -- the copies -------------------------------------------------------------------------------

    def _begin(self, copies: Copies) -> _Begun | None:
        """Copy what can't wait, and begin with the rest; None if there is no rest."""
        if not copies.waits and not copies.device.any():
            copies.at_boundary(self._pool, self._threads)
            return None
        guard = WriteDetector(copies)
        now = self._streams.start(copies.device)
        self._streams.hold(now)
        late = self._streams.start(copies.late_device)
        if not late.watched:
            self._streams.hold(late)
        copies.at_boundary(self._pool, self._threads)
        return _Begun(Copying(copies.late, self._pool, self._threads // 2 - 1), guard, now, late)

    def _complete(
        self, begun: _Begun | None, tensors: list[torch.Tensor], sealed: Sealed, looked_at: Sequence[Chunk]
    ) -> None:
        if begun is None:
            failpoint("save.copied")
            self._hand_over(sealed)
            self._look(sealed, looked_at)
            return
        pending = _Pending(sealed, looked_at, begun, tensors)
        pending.whole = self._pool.submit(self._finish, pending)
        self._pending = pending

    def _recipe(self, captured: Captured, plan: layout.Plan, arena: Arena, late: frozenset[int]) -> Recipe:
        if self._recipes_for != (captured.form, late):
            self._recipes, self._recipes_for = WeakKeyDictionary(), (captured.form, late)
        recipe = self._recipes.get(arena)
        if recipe is None:
            recipe = Recipe(plan.copies, captured.tensors, arena.view(plan.bytes), late, captured.steady)
            self._recipes[arena] = recipe
        return recipe

    def _finish(self, pending: _Pending) -> bool:
        """In the background: copy, and hand over what is whole."""
        with span("copy"):
            whole = pending.finish()
        failpoint("save.copied")
        if not whole:
            return False
        with span("hand over"):
            self.sink.submit(pending.sealed)
        failpoint("save.sealed")
        self._look(pending.sealed, pending.looked_at)
        return True

    def _look(self, sealed: Sealed, chunks: Sequence[Chunk]) -> None:
        if chunks:
            self.unchanged.start_comparing(sealed.snapshot.checkpoint.step, sealed.snapshot.image, chunks, self._pool)

    def _before_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        """Called by torch before each step of any optimizer: what it changes must have been copied."""
        if torch.compiler.is_compiling():
            return  # it would be compiled away; a compiled step is not seen, and nothing waits for it then
        if capturing():
            return  # it is not done now, and when it is replayed it is not seen
        self._stepping[id(optimizer)] = optimizer
        pending = self._pending
        if pending is not None:
            began = time.monotonic()
            with span("join"):
                pending.join()
                self._streams.hold(pending.begun.late)
            self.joined_seconds += time.monotonic() - began

    def _stays(self, captured: Captured, plan: layout.Plan, objects: Mapping[str, Any]) -> frozenset[int]:
        """Addresses of the memory that is written to by the next optimizer step, and not before, or not at all.

        Only of optimizers that were seen to step just now: one whose step is compiled, or part of a captured CUDA
        graph, is not seen, and nothing would wait for the copy. Of what did not change lately only frozen parameters:
        buffers, and arrays of the script's own, may be written to at any time.
        """
        made_for = (captured.form, tuple(self._stepped), self._trusts_unchanged)
        if made_for != self._late_for:
            found: set[int] = set()
            if self._stepped and self._trusts_unchanged:
                found.update(_address(captured.tensors[copy.leaf]) for copy in plan.second_copies)
                found.intersection_update(
                    _address(parameter)
                    for module in objects.values()
                    if isinstance(module, torch.nn.Module)
                    for parameter in module.parameters()
                    if not parameter.requires_grad
                )
            for optimizer in self._stepped.values():
                for group in optimizer.param_groups:
                    found.update(_address(parameter) for parameter in group["params"])
                for state in optimizer.state.values():
                    found.update(_address(value) for value in state.values() if isinstance(value, torch.Tensor))
            self._late, self._late_for = frozenset(found), made_for
        return self._late

    def _hand_over(self, sealed: Sealed) -> None:
        try:
            self.sink.submit(sealed)
        except OSError as error:
            self._hand_over_here(sealed, error)
        failpoint("save.sealed")

    def _hand_over_here(self, sealed: Sealed, error: OSError) -> None:
        while self.sink.alive() and not self.sink.idle():
            time.sleep(0.002)  # what was handed over before lies in the arenas that are given up now
        self.fall_back(
            f"a snapshot can't be handed to the node daemon ({error}): this rank saves by itself from "
            "now on, and what it holds in memory is lost with it if it is killed. Give the node a larger /dev/shm"
        )
        self.sink.submit(sealed)

    # -- the layout -------------------------------------------------------------------------------

    def _capture(self, objects: Mapping[str, Any], promised: frozenset[str]) -> Captured:
        if self._device is None:
            self._device = current_device()
        if self.ranks.world_size > 1:
            # DDP's parameters stay where they are; the optimizer's state comes into being with its first step.
            form = tuple(
                (name, id(value), len(value.state) if isinstance(value, torch.optim.Optimizer) else 0)
                for name, value in objects.items()
                if isinstance(value, (torch.nn.Module, torch.optim.Optimizer))
            )
            if form != self._known_for:
                self._known, self._known_for = known_equal_storages(objects), form
        return self._recapture.capture(objects, self._known, promised)

    def _planned(self, captured: Captured) -> layout.Plan:
        leaves = captured.leaves if captured.leaves is not None else self._unverified
        self._unverified = None
        if leaves is not None:
            leaves = self._verified(self._demote(leaves))
            planned_for = self._plan and (self._plan.signature, self._plan_unchanged)
            if planned_for != (layout.signature(leaves), self.unchanged.names):
                self._plan = self._make_plan(leaves)
            self._plan_form = captured.form
        assert self._plan is not None
        assert self._plan_form is captured.form
        return self._plan

    def _make_plan(self, leaves: list[Leaf]) -> layout.Plan:
        # Nothing of this run in the file: equal states make equal files, whoever wrote them.
        self._plan_unchanged = self.unchanged.names
        return layout.make_plan(leaves, self.ranks.rank, self.ranks.world_size, {"format": "pt"}, self._plan_unchanged)

    def _demote(self, leaves: list[Leaf]) -> list[Leaf]:
        return [_own(leaf) if leaf.key in self._demoted else leaf for leaf in leaves] if self._demoted else leaves

    def _verified(self, leaves: list[Leaf]) -> list[Leaf]:
        """Is what is to be split over the ranks equal on all of them? What isn't, each rank stores by itself."""
        if self.ranks.world_size == 1:
            return leaves
        split = sorted((leaf for leaf in leaves if leaf.split), key=lambda leaf: leaf.key)
        form = hashlib.blake2b(repr([(leaf.key, leaf.dtype, leaf.shape) for leaf in split]).encode()).hexdigest()
        if form == self._split:
            return leaves  # something else has changed its form, on this rank alone perhaps
        self._split = form
        digests = {leaf.key: _content(leaf) for leaf in split}
        everywhere = self.ranks.gather(digest(repr(sorted(digests.items())).encode()))
        if len(set(everywhere)) == 1:
            return leaves
        tables = self.ranks.gather(digests)
        equal = {key for key, value in digests.items() if all(table.get(key) == value for table in tables)}
        self._demoted |= frozenset(key for table in tables for key in table if key not in equal)
        log.warning(
            "%d tensors that should be equal on all ranks differ, e.g. %s: every rank stores its own",
            len(self._demoted),
            min(self._demoted),
        )
        return self._demote(leaves)


def _address(tensor: torch.Tensor) -> int:
    """Of the memory that this rank holds of it."""
    local = getattr(tensor, "_local_tensor", tensor)
    return int(local.data_ptr())


def _own(leaf: Leaf) -> Leaf:
    return Leaf(leaf.key, leaf.tensor, leaf.dtype, leaf.shape, leaf.offset, split=False, shared=False)


def _content(leaf: Leaf) -> str:
    flat = leaf.tensor.detach().cpu().contiguous().resolve_conj().resolve_neg().reshape(-1)
    return digest(flat.view(torch.uint8).numpy().data) if flat.numel() else ""
