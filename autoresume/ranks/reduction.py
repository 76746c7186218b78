"""The order in which DDP adds up gradients, kept over a resume.

Law: with three ranks or more the bits of a summed gradient depend on where it lies in DDP's buckets.
DDP lays them out anew after its first backward pass, in the order in which gradients became ready
then; a resumed process would do its first step with the first layout, and end in other bits. So that
order is noted, is part of the run's state, and is rehearsed after a restore: one reduction of zeros,
in the noted order, makes DDP lay out its buckets as they were. Two ranks need none of it, since
a + b = b + a.
"""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from autoresume.ranks.agreement import Ranks

log = logging.getLogger("autoresume")

_LEAST_RANKS = 3
_ELEMENTWISE = "torch.distributed.algorithms.ddp_comm_hooks.default_hooks"


class ReductionOrder:
    """Notes the order of one DDP module's first synchronised backward pass."""

    def __init__(self, module: DistributedDataParallel) -> None:
        self.module = module
        ignored: set[str] = getattr(module, "parameters_to_ignore", set())
        named = module.module.named_parameters()
        self.parameters = [p for name, p in named if p.requires_grad and name not in ignored]
        self.order: list[int] | None = None
        self._seen: list[int] = []
        self._hooks: list[Any] = []

    def watch(self) -> None:
        for index, parameter in enumerate(self.parameters):
            self._hooks.append(parameter.register_post_accumulate_grad_hook(functools.partial(self._ready, index)))

    def _ready(self, index: int, parameter: torch.Tensor) -> None:
        if self.module.require_backward_grad_sync:
            self._seen.append(index)

    def note(self) -> None:
        """At a step boundary: take what was seen, and stop watching once there was a backward pass."""
        if not self._seen:
            return
        if sorted(self._seen) == list(range(len(self.parameters))):
            self.order = self._seen
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen = [], []

    def can_rehearse(self) -> bool:
        """False where a reduction of zeros would be noticed: by hooks of the user's on gradients or communication."""
        hooked = any(getattr(p, "_post_accumulate_grad_hooks", None) for p in self.parameters)
        return not hooked and not getattr(self.module, "_comm_hooks", []) and hasattr(self.module, "reducer")

    def rehearse(self, order: list[int]) -> None:
        """Every rank at once. Parameters and gradients are as before when it returns."""
        kept = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        reducer: Any = self.module.reducer
        with torch.enable_grad():
            reducer.prepare_for_forward()
            reducer.prepare_for_backward([])
            for index in order:
                (self.parameters[index].reshape(-1)[:1].sum() * 0).backward()
        for parameter, gradient in zip(self.parameters, kept):
            parameter.grad = gradient
        self.order = order


def find_ddp_modules(objects: Mapping[str, Any], world_size: int) -> dict[str, DistributedDataParallel]:
    """The DDP wrappers of tracked modules, by the modules' names."""
    if world_size == 1:
        return {}
    tracked = {id(value): name for name, value in objects.items() if isinstance(value, torch.nn.Module)}
    found: dict[str, DistributedDataParallel] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), DistributedDataParallel):
            inner = getattr(thing.module, "_orig_mod", thing.module)
            if id(inner) in tracked:
                found[tracked[id(inner)]] = thing
    return dict(sorted(found.items()))


def hook_on_buckets(module: DistributedDataParallel) -> str | None:
    """The name of a communication hook that may look at DDP's buckets, which are not those of the life before in the
    first step of each life. Torch's hooks that only change the numbers' type don't; some DDPs never lay them out anew.
    """
    hooks = [hook for hook, _ in getattr(module, "_comm_hooks", []) if hook.__module__ != _ELEMENTWISE]
    if not hooks or (module.find_unused_parameters and not module.static_graph):
        return None
    return str(getattr(hooks[0], "__qualname__", type(hooks[0]).__qualname__))


def restore_reduction_orders(
    objects: Mapping[str, Any], ranks: Ranks, noted: Mapping[str, list[int]]
) -> dict[str, ReductionOrder]:
    """Let DDP add up gradients in the noted order, bit for bit; where none is noted, note it. Every rank calls it."""
    modules = find_ddp_modules(objects, ranks.world_size)
    for name, module in modules.items():
        hook = hook_on_buckets(module)
        if hook is not None and ranks.rank == 0:
            log.warning(
                "%s: the communication hook %s may look at DDP's buckets, which DDP lays out anew after the first step "
                "of each life: the first step after a resume is another one then. With find_unused_parameters=True DDP "
                "keeps them as they are.",
                name,
                hook,
            )
    # Two ranks need no order, since a + b = b + a.
    found = {name: ReductionOrder(module) for name, module in modules.items() if ranks.world_size >= _LEAST_RANKS}
    for name, one in found.items():
        order = noted.get(name)
        ready = order is not None and len(order) == len(one.parameters) and one.can_rehearse()
        if all(ranks.gather(ready)) and order is not None:
            one.rehearse(order)
            continue
        one.watch()
        if order is not None and ranks.rank == 0:
            log.warning(
                "%s: DDP adds up the first step's gradients in another order than before, since hooks on "
                "gradients or communication are set: the last bits may differ",
                name,
            )
    return found
