"""The state of a run, and which bytes of it this rank stores where: planned anew only when the state changes its form.

Law: planning is local, but for one question at the first save and whenever the replicated state changes its form: is
what is to be split over the ranks equal on all of them? What isn't, each rank stores by itself from then on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import torch

from autoresume.format.digest import digest
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot import layout
from autoresume.snapshot.layout import Plan
from autoresume.snapshot.recapture import Recapture, Recaptured
from autoresume.snapshot.unchanged import Unchanged
from autoresume.state.capture import Leaf
from autoresume.state.replicated import known_equal_storages

log = logging.getLogger("autoresume")


class Planner:
    """Of one rank. `plan` is the last one, if there was any."""

    def __init__(self, ranks: Ranks, unchanged: Unchanged) -> None:
        self.plan: Plan | None = None
        self._ranks, self._unchanged = ranks, unchanged
        self._recapture = Recapture()
        self._form: object = None
        """Of the state that `plan` was made for."""
        self._second_file: frozenset[str] = frozenset()
        """What `plan` puts into the second tensor file."""
        self._unverified: list[Leaf] | None = None
        """What was planned ahead, until the ranks meet at the first save."""
        self._split: str | None = None
        self._own: frozenset[str] = frozenset()
        """Keys of what should be equal on all ranks, and isn't."""
        self._known: frozenset[int] = frozenset()
        self._known_for: tuple[Any, ...] | None = None

    def regroup(self) -> None:
        """Before a capture: what did not change lately goes to another file than it went to so far."""
        if self._second_file != self._unchanged.names:
            self._recapture.forget()

    def capture(self, objects: Mapping[str, Any], promised: frozenset[str]) -> Recaptured:
        """The state of all `objects` now, as live memory. Raises StateError."""
        if self._ranks.world_size > 1:
            # DDP's parameters stay where they are; the optimizer's state comes into being with its first step.
            form = tuple(
                (name, id(value), len(value.state) if isinstance(value, torch.optim.Optimizer) else 0)
                for name, value in objects.items()
                if isinstance(value, (torch.nn.Module, torch.optim.Optimizer))
            )
            if form != self._known_for:
                self._known, self._known_for = known_equal_storages(objects), form
        return self._recapture.capture(objects, self._known, promised)

    def plan_ahead(self, captured: Recaptured) -> Plan | None:
        """Before the first save; None if there is a plan already. No rank is asked anything."""
        if captured.leaves is None or self.plan is not None:
            return None
        self.plan, self._form = self._make(captured.leaves), captured.form
        self._unverified = captured.leaves
        return self.plan

    def plan_for(self, captured: Recaptured) -> Plan:
        """Every rank must call it at the same save. Raises StateError."""
        leaves = captured.leaves if captured.leaves is not None else self._unverified
        self._unverified = None
        if leaves is not None:
            leaves = self._verified(self._demoted(leaves))
            planned_for = self.plan and (self.plan.signature, self._second_file)
            if planned_for != (layout.signature(leaves), self._unchanged.names):
                self.plan = self._make(leaves)
            self._form = captured.form
        assert self.plan is not None
        assert self._form is captured.form
        return self.plan

    def _make(self, leaves: list[Leaf]) -> Plan:
        # Nothing of this run in the file: equal states make equal files, whoever wrote them.
        self._second_file = self._unchanged.names
        rank, world_size = self._ranks.rank, self._ranks.world_size
        return layout.make_plan(leaves, rank, world_size, {"format": "pt"}, self._second_file)

    def _demoted(self, leaves: list[Leaf]) -> list[Leaf]:
        return [_as_own(leaf) if leaf.key in self._own else leaf for leaf in leaves] if self._own else leaves

    def _verified(self, leaves: list[Leaf]) -> list[Leaf]:
        """Is what is to be split over the ranks equal on all of them? What isn't, each rank stores by itself."""
        if self._ranks.world_size == 1:
            return leaves
        split = sorted((leaf for leaf in leaves if leaf.split), key=lambda leaf: leaf.key)
        form = hashlib.blake2b(repr([(leaf.key, leaf.dtype, leaf.shape) for leaf in split]).encode()).hexdigest()
        if form == self._split:
            return leaves  # something else has changed its form, on this rank alone perhaps
        self._split = form
        digests = {leaf.key: _content(leaf) for leaf in split}
        everywhere = self._ranks.gather(digest(repr(sorted(digests.items())).encode()))
        if len(set(everywhere)) == 1:
            return leaves
        tables = self._ranks.gather(digests)
        equal = {key for key, value in digests.items() if all(table.get(key) == value for table in tables)}
        self._own |= frozenset(key for table in tables for key in table if key not in equal)
        log.warning(
            "%d tensors that should be equal on all ranks differ, e.g. %s: every rank stores its own",
            len(self._own),
            min(self._own),
        )
        return self._demoted(leaves)


def _as_own(leaf: Leaf) -> Leaf:
    return Leaf(leaf.key, leaf.tensor, leaf.dtype, leaf.shape, leaf.offset, split=False, shared=False)


def _content(leaf: Leaf) -> str:
    flat = leaf.tensor.detach().cpu().contiguous().resolve_conj().resolve_neg().reshape(-1)
    return digest(flat.view(torch.uint8).numpy().data) if flat.numel() else ""
