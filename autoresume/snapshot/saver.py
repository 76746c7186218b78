"""Taking snapshots at step boundaries, while training goes on.

Law: a save is capture, plan (only when the state has changed its form), copies into a free arena, and a hand-over.
What changes in a forward pass is copied at the boundary; what only an optimizer's step changes is copied while the
next forward and backward passes go on, and the step waits for what is left of it. A copy whose source was written
to meanwhile is found out and never handed over. At most one snapshot is being taken and one being persisted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from autoresume.base.failpoints import failpoint
from autoresume.base.spans import span
from autoresume.checkpoint.persist import Snapshot
from autoresume.format.names import CheckpointName, pickle_file
from autoresume.format.part import Chunk, Labels
from autoresume.handoff.arena import Arena
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot.arenas import Arenas
from autoresume.snapshot.copies import Copies, Copying, Recipe, WriteDetector, copy_threads
from autoresume.snapshot.devices import Streams, current_device
from autoresume.snapshot.layout import Plan
from autoresume.snapshot.looks import Looking
from autoresume.snapshot.optimizer_steps import OptimizerSteps
from autoresume.snapshot.pending import CopiesBegun, PendingSnapshot, concluded
from autoresume.snapshot.planner import Planner
from autoresume.snapshot.recapture import Recaptured, without_collections
from autoresume.snapshot.sinks import Sealed, Sink
from autoresume.snapshot.unchanged import Unchanged
from autoresume.state.capture import capture

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
        self._planner = Planner(ranks, self.unchanged)
        self._optimizers = OptimizerSteps(self._before_step)
        self._pending: PendingSnapshot | None = None
        self._recipes: WeakKeyDictionary[Arena, Recipe] = WeakKeyDictionary()
        self._recipes_for: tuple[Any, ...] | None = None

    def prepare(self, objects: Mapping[str, Any], promised: frozenset[str]) -> None:
        """Make ready for the first save what takes long: the layout, and memory for it, in the background."""
        self._note_device()
        with without_collections():
            plan = self._planner.plan_ahead(self._planner.capture(objects, promised), self._pool)
        if plan is not None:
            self._arenas.prepare(plan.bytes, self._pool)

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

        Unless it is `urgent` it may be handed over only later, while training goes on; `finish_handover` waits for
        that. `logged` may wait for a device, and is asked when that has been told what to copy: it goes on meanwhile.
        Raises StateError for state that can't be stored.
        """
        began = time.monotonic()
        failpoint("save.begin")
        self.finish_handover()
        self.unchanged.finish_comparing()
        self._planner.regroup(urgent)
        self._note_device()
        self.joined_seconds = 0.0
        with without_collections():
            with span("capture"):
                captured = self._planner.capture(objects, promised)
            with span("plan"):
                plan = self._planner.plan_for(captured, name, urgent)
        with span("wait for memory"):
            arena = self._arenas.acquire(plan.bytes)
        image = arena.view(plan.bytes)
        plan.write_headers(image)
        late = frozenset[int]() if urgent or not self.overlaps else self._may_wait(captured, plan, objects)
        with span("copy at the boundary"):
            looking = self._planner.look(name, captured.tensors, late)
            begun = self._begin(self._recipe(captured, plan, arena, late).copies(captured.tensors), looking)
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
        self._complete(begun, captured.tensors, Sealed(snapshot, arena), () if urgent else plan.chunks, looking)
        if urgent:
            self.finish_handover()
        return SnapshotTaken(name, snapshot.bytes, time.monotonic() - began - waited)

    def is_mixed(self, name: CheckpointName) -> bool:
        """At the end: whether `name`, which was saved last, has shares of what is not the same on all ranks."""
        return self._planner.is_mixed(name)

    def check(self, objects: Mapping[str, Any], promised: frozenset[str]) -> int:
        """Raise now what `save` would raise later; the bytes of this rank's state."""
        leaves = capture(objects, frozenset(), promised).leaves
        return sum(leaf.tensor.numel() * leaf.tensor.element_size() for leaf in leaves)

    @property
    def updated_since_boundary(self) -> bool:
        """Whether an optimizer was seen to step since the last step boundary."""
        return self._optimizers.any_since_boundary

    @property
    def sees_updates(self) -> bool:
        """Whether any optimizer was seen to step."""
        return self._optimizers.any_seen

    def at_boundary(self) -> None:
        """At every step boundary, before anything else."""
        self._optimizers.at_boundary()
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
            whole = True
        self._planner.compare(pending.sealed.snapshot.checkpoint, pending.look, whole)
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
        self._optimizers.close()
        self.finish_handover()
        self.unchanged.finish_comparing()
        self._recipes.clear()
        self.sink.close()
        self._arenas.close()
        self._planner.close()
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

    def _note_device(self) -> None:
        if self._device is None:
            self._device = current_device()

    def _use_device(self) -> None:
        """In each thread of the pool: one that pins memory, or waits for a device, would else make a context on the
        first device, which belongs to another rank."""
        if self._device is not None:
            torch.cuda.set_device(self._device)

    # -- the copies -------------------------------------------------------------------------------

    def _begin(self, copies: Copies, looking: Looking | None) -> CopiesBegun | None:
        """Copy what can't wait, and begin with the rest; None if there is no rest."""
        if looking is not None:
            copies.extend(looking.copies)
        if not copies.waits and not copies.device.any() and not (looking is not None and looking.is_large):
            copies.at_boundary(self._pool, self._threads)
            return None
        detector = WriteDetector(copies)
        now = self._streams.start(copies.device)
        self._streams.hold(now)
        late = self._streams.start(copies.late_device)
        if not late.watched:
            self._streams.hold(late)
        copies.at_boundary(self._pool, self._threads)
        return CopiesBegun(Copying(copies.late, self._pool, self._threads // 2 - 1), detector, now, late)

    def _complete(
        self,
        begun: CopiesBegun | None,
        tensors: list[torch.Tensor],
        sealed: Sealed,
        looked_at: Sequence[Chunk],
        looking: Looking | None,
    ) -> None:
        if begun is None:
            sealed, look = concluded(sealed, looking)
            failpoint("save.copied")
            self._hand_over(sealed)
            self._look(sealed, looked_at)
            self._planner.compare(sealed.snapshot.checkpoint, look)
            return
        pending = PendingSnapshot(sealed, looked_at, begun, tensors, looking)
        pending.whole = self._pool.submit(self._finish, pending)
        self._pending = pending

    def _recipe(self, captured: Recaptured, plan: Plan, arena: Arena, late: frozenset[int]) -> Recipe:
        if self._recipes_for != (captured.form, late):
            self._recipes, self._recipes_for = WeakKeyDictionary(), (captured.form, late)
        recipe = self._recipes.get(arena)
        if recipe is None:
            recipe = Recipe(plan.copies, captured.tensors, arena.view(plan.bytes), late, captured.steady)
            self._recipes[arena] = recipe
        return recipe

    def _finish(self, pending: PendingSnapshot) -> bool:
        """In the background: copy, and hand over what is whole."""
        with span("copy"):
            whole = pending.finish()
            pending.conclude_look()
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

    def _before_step(self) -> None:
        """What an optimizer's step changes, or whoever gets at a parameter's data, must have been copied."""
        pending = self._pending
        if pending is not None:
            began = time.monotonic()
            with span("join"):
                pending.join()
                self._streams.hold(pending.begun.late)
            self.joined_seconds += time.monotonic() - began

    def _may_wait(self, captured: Recaptured, plan: Plan, objects: Mapping[str, Any]) -> frozenset[int]:
        """Addresses of the memory that nobody writes to before the next optimizer step."""
        frozen = (captured.tensors[copy.leaf] for copy in plan.second_copies) if self._trusts_unchanged else None
        return self._optimizers.late_addresses(captured.form, frozen, objects)

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
