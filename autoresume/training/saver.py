"""Taking snapshots at step boundaries.

Law: a save is capture, plan (only when the state has changed its form), one pass of copies into a free
arena, and a hand-over; nothing else happens while training stands still. At most one snapshot is
being persisted and one being taken; then training waits.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoresume.checkpoint.persist import Snapshot
from autoresume.failpoints import reach
from autoresume.format.digest import digest
from autoresume.format.names import CheckpointName, pickle_file
from autoresume.handoff.arena import Arena
from autoresume.training import layout
from autoresume.training.agreement import Ranks
from autoresume.training.sinks import Sealed, Sink
from autoresume.training.state import Captured, Leaf, capture, known_equal_storages

log = logging.getLogger("autoresume")

_ARENAS = 2


@dataclass(frozen=True)
class Taken:
    """A snapshot that was taken: `stall_seconds` is how long training stood still for it."""

    name: CheckpointName
    bytes: int
    stall_seconds: float


class Saver:
    """Snapshots of one rank. `fallback` makes the sink that is used when tmpfs is too small for the arenas."""

    def __init__(
        self,
        run_id: str,
        ranks: Ranks,
        sink: Sink,
        arena_folder: Path | None,
        fallback: Callable[[], Sink],
    ) -> None:
        self.run_id, self.ranks, self.sink = run_id, ranks, sink
        self._folder, self._fallback = arena_folder, fallback
        self._plan: layout.Plan | None = None
        self._split: str | None = None
        self._arenas: list[Arena] = []
        self._demoted: frozenset[str] = frozenset()
        self._known: frozenset[int] = frozenset()
        self._known_for: tuple[Any, ...] | None = None

    def save(
        self,
        name: CheckpointName,
        objects: Mapping[str, Any],
        promised: frozenset[str],
        about: dict[str, Any],
        files: tuple[str, ...] = (),
        sync: tuple[str, ...] = (),
    ) -> Taken:
        """Take a snapshot of `objects` and hand it over to be persisted as `name`. Nothing is durable yet.

        Raises StateError for state that can't be stored.
        """
        began = time.monotonic()
        reach("save.begin")
        captured = self._capture(objects, promised)
        plan = self._planned(captured)
        arena = self._free_arena(plan.bytes)
        layout.execute(plan, captured.leaves, arena.view(plan.bytes))
        reach("save.copied")
        rank = self.ranks.rank
        snapshot = Snapshot(
            run_id=self.run_id,
            checkpoint=name,
            rank=rank,
            world_size=self.ranks.world_size,
            time=round(time.time(), 3),
            image=arena.view(plan.bytes),
            chunks=plan.chunks,
            tree=captured.tree,
            about=about,
            attachments={key: (pickle_file(rank, key), data) for key, data in captured.attachments.items()},
            files=files,
            sync=sync,
        )
        self.sink.submit(Sealed(snapshot, arena))
        reach("save.sealed")
        return Taken(name, snapshot.bytes, time.monotonic() - began)

    def check(self, objects: Mapping[str, Any], promised: frozenset[str]) -> int:
        """Raise now what `save` would raise later; the bytes of this rank's state."""
        leaves = capture(objects, frozenset(), promised).leaves
        return sum(leaf.tensor.numel() * leaf.tensor.element_size() for leaf in leaves)

    def close(self) -> None:
        self.sink.close()
        for arena in self._arenas:
            arena.close(unlink=True)
        self._arenas.clear()

    # -- the layout -------------------------------------------------------------------------------

    def _capture(self, objects: Mapping[str, Any], promised: frozenset[str]) -> Captured:
        if self.ranks.world_size > 1:
            # DDP's parameters stay where they are; the optimizer's state comes into being with its first step.
            form = tuple(
                (name, id(value), len(value.state) if isinstance(value, torch.optim.Optimizer) else 0)
                for name, value in objects.items()
                if isinstance(value, (torch.nn.Module, torch.optim.Optimizer))
            )
            if form != self._known_for:
                self._known, self._known_for = known_equal_storages(objects), form
        captured = capture(objects, self._known, promised)
        if self._demoted:
            captured.leaves = [_own(leaf) if leaf.key in self._demoted else leaf for leaf in captured.leaves]
        return captured

    def _planned(self, captured: Captured) -> layout.Plan:
        signature = layout.signature(captured.leaves)
        if self._plan is not None and self._plan.signature == signature:
            return self._plan
        if self.ranks.world_size > 1:
            self._verify_split(captured)
        # Nothing of this run in the file: equal states make equal files, whoever wrote them.
        self._plan = layout.make_plan(captured.leaves, self.ranks.rank, self.ranks.world_size, {"format": "pt"})
        return self._plan

    def _verify_split(self, captured: Captured) -> None:
        """Is what is to be split over the ranks equal on all of them? What isn't, each rank stores by itself."""
        split = sorted((leaf for leaf in captured.leaves if leaf.split), key=lambda leaf: leaf.key)
        form = hashlib.blake2b(repr([(leaf.key, leaf.dtype, leaf.shape) for leaf in split]).encode()).hexdigest()
        if form == self._split:
            return  # something else has changed its form, on this rank alone perhaps
        self._split = form
        digests = {leaf.key: _content(leaf) for leaf in split}
        everywhere = self.ranks.gather(digest(repr(sorted(digests.items())).encode()))
        if len(set(everywhere)) == 1:
            return
        tables = self.ranks.gather(digests)
        equal = {key for key, value in digests.items() if all(table.get(key) == value for table in tables)}
        self._demoted |= frozenset(key for table in tables for key in table if key not in equal)
        log.warning(
            "%d tensors that should be equal on all ranks differ, e.g. %s: every rank stores its own",
            len(self._demoted),
            min(self._demoted),
        )
        captured.leaves = [_own(leaf) if leaf.key in self._demoted else leaf for leaf in captured.leaves]

    # -- the arenas -------------------------------------------------------------------------------

    def _free_arena(self, size: int) -> Arena:
        while True:
            for arena in list(self._arenas):
                if not self.sink.busy(arena):
                    if arena.size >= size:
                        return arena
                    self._arenas.remove(arena)
                    arena.close(unlink=True)
            if len(self._arenas) < _ARENAS:
                made = self._make_arena(size)
                if made is not None:
                    self._arenas.append(made)
                    return made
            if not self.sink.alive():
                self.use_fallback("the node daemon is gone")
                continue
            time.sleep(0.002)

    def _make_arena(self, size: int) -> Arena | None:
        """A new arena; None if there is no room for one more, and another will be free soon."""
        path = None
        if self._folder is not None:
            path = self._folder / f"arena-{self.ranks.rank:05d}-{time.monotonic_ns():x}"
        try:
            return Arena(size, path)
        except MemoryError as error:
            if self._arenas:
                return None
            self.use_fallback(
                f"{error}: snapshots are kept in this rank's own memory instead, and are lost with it if it is killed. "
                "Give the node a larger /dev/shm, or the job more memory where that counts against it"
            )
            return Arena(size, None)

    def use_fallback(self, why: str) -> None:
        """Go on without the daemon and its memory: this rank persists by itself."""
        log.warning("%s", why)
        self.sink, self._folder = self._fallback(), None
        for arena in self._arenas:
            arena.close(unlink=True)
        self._arenas.clear()


def _own(leaf: Leaf) -> Leaf:
    return Leaf(leaf.key, leaf.tensor, leaf.dtype, leaf.shape, leaf.offset, split=False, shared=False)


def _content(leaf: Leaf) -> str:
    flat = leaf.tensor.detach().cpu().contiguous().resolve_conj().resolve_neg().reshape(-1)
    return digest(flat.view(torch.uint8).numpy().data) if flat.numel() else ""
