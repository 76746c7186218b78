"""The state of a run, and which bytes of it this rank stores where: planned anew only when the state changes its form.

Law: planning is local, but for one question at the first save: is what is to be split over the ranks equal on all of
them? What isn't, or is not any more (replication.py), each rank stores by itself from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from autoresume.format.names import CheckpointName
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot import layout
from autoresume.snapshot.layout import Plan
from autoresume.snapshot.looks import ALL, Look, Looking, Looks, Watch
from autoresume.snapshot.recapture import Recapture, Recaptured, without_collections
from autoresume.snapshot.replication import Replication
from autoresume.snapshot.unchanged import Unchanged
from autoresume.state.capture import Leaf
from autoresume.state.replicated import known_equal_storages


class Planner:
    """Of one rank. `plan` is the last one, if there was any."""

    def __init__(self, ranks: Ranks, unchanged: Unchanged) -> None:
        self.plan: Plan | None = None
        self._ranks, self._unchanged = ranks, unchanged
        self._recapture = Recapture()
        self._captured: tuple[Mapping[str, Any], frozenset[str]] = ({}, frozenset())
        self._form: object = None
        """Of the state that `plan` was made for."""
        self._second_file: frozenset[str] = frozenset()
        """What `plan` puts into the second tensor file."""
        self._unverified: list[Leaf] | None = None
        """What was planned ahead, until the ranks meet at the first save."""
        self._replication = Replication(ranks)
        self._looks = Looks()
        self._watch: Watch | None = None
        """What this rank shares with others by `plan`."""
        self._all: dict[str, int] | None = None
        """The fingerprints of all of it, where it was looked at just now."""
        self._compared = False
        self._known: frozenset[int] = frozenset()
        self._known_for: tuple[Any, ...] | None = None

    def regroup(self, urgent: bool) -> None:
        """Before a capture: what did not change lately goes to another file than it went to so far, and what has parted
        is stored by each rank. If `urgent`, all is looked at."""
        self._replication.hear()
        if self._second_file != self._unchanged.names or self._replication.changed or (urgent and self._is_one_of_many):
            self._recapture.forget()

    @property
    def _is_one_of_many(self) -> bool:
        return self._ranks.world_size > 1

    def capture(self, objects: Mapping[str, Any], promised: frozenset[str]) -> Recaptured:
        """The state of all `objects` now, as live memory. Raises StateError."""
        self._captured = objects, promised
        if self._is_one_of_many:
            # DDP's parameters stay where they are; the optimizer's state comes into being with its first step.
            form = tuple(
                (name, id(value), len(value.state) if isinstance(value, torch.optim.Optimizer) else 0)
                for name, value in objects.items()
                if isinstance(value, (torch.nn.Module, torch.optim.Optimizer))
            )
            if form != self._known_for:
                self._known, self._known_for = known_equal_storages(objects), form
        return self._recapture.capture(objects, self._known, promised)

    def plan_ahead(self, captured: Recaptured, pool: ThreadPoolExecutor) -> Plan | None:
        """Before the first save; None if there is a plan already. No rank is asked anything."""
        if captured.leaves is None or self.plan is not None:
            return None
        self.plan, self._form = self._make(captured.leaves), captured.form
        self._unverified = captured.leaves
        if self._is_one_of_many:
            self._looks.prepare(Watch.of(captured.leaves, []), pool)
        return self.plan

    def plan_for(self, captured: Recaptured, name: CheckpointName, urgent: bool) -> Plan:
        """Every rank must call it at the same first save. Raises StateError."""
        leaves = captured.leaves if captured.leaves is not None else self._unverified
        self._unverified, self._all = None, None
        if leaves is not None:
            if self._is_one_of_many:
                self._compare(leaves, name, urgent)
            whole, leaves = leaves, self._replication.sorted_out(leaves)
            self._replication.changed = False
            planned_for = self.plan and (self.plan.signature, self._second_file)
            if planned_for != (layout.signature(leaves), self._unchanged.names):
                self.plan = self._make(leaves)
            self._form = captured.form
            if self._is_one_of_many and self.plan is not None:
                self._watch = Watch.of(leaves, self._replication.unproven(whole, self.plan.chunks))
        assert self.plan is not None
        assert self._form is captured.form
        return self.plan

    def _compare(self, leaves: list[Leaf], name: CheckpointName, urgent: bool) -> None:
        if not self._compared:
            self._all, self._compared = self._replication.compare_first(leaves), True
        elif urgent:
            self._all = self._replication.compare_all(leaves, name)

    def look(self, name: CheckpointName, tensors: Sequence[torch.Tensor], late: AbstractSet[int]) -> Looking | None:
        """At the tensors that this rank shares with others; None where there are none."""
        watch = self._watch
        if watch is None or not (watch.watched or watch.unproven):
            return None
        if self._all is not None:
            self._replication.note_saved(name, ALL)
            return Looking.over(Look.of(watch, ALL, {one.key: self._all[one.key] for one in watch.watched}))
        turn = self._replication.next_turn(name)
        self._replication.note_saved(name, turn)
        return self._looks.begin(watch, turn, tensors, late)

    def compare(self, name: CheckpointName, look: Look | None, whole: bool = True) -> None:
        """With what the others saw, when they have. Not `whole`: the snapshot was given up."""
        if look is not None and look.turn != ALL:
            self._replication.ask(name, look, whole)

    def is_mixed(self, name: CheckpointName) -> bool:
        """Whether the snapshot of the state as it is now has shares of what is not the same on all ranks: all is
        looked at. Every rank must ask."""
        self.regroup(urgent=True)
        with without_collections():
            self.plan_for(self.capture(*self._captured), name, urgent=True)
        return str(name) in self._replication.mixed

    def close(self) -> None:
        self._looks.close()

    def _make(self, leaves: list[Leaf]) -> Plan:
        # Nothing of this run in the file: equal states make equal files, whoever wrote them.
        self._second_file = self._unchanged.names
        rank, world_size = self._ranks.rank, self._ranks.world_size
        return layout.make_plan(leaves, rank, world_size, {"format": "pt"}, self._second_file)
