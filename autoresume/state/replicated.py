"""What every rank holds an equal copy of: what DDP keeps equal, and what the user promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch

from autoresume.state.sharded import is_sharded

T = TypeVar("T")


class replicated(Generic[T]):
    """Track `value`, of which every rank holds an equal copy, as a promise: it is stored once, split over ranks.

    For copies that autoresume can't know to be equal, such as an EMA that every rank computes. It is not needed for
    models under DDP and their optimizers. The promise is checked by digest at the first save, and looked at as long
    as the run lives: what has parted is told, and stored by each rank from then on.
    """

    def __init__(self, value: T) -> None:
        self.value = value


def known_equal_storages(objects: Mapping[str, Any]) -> frozenset[int]:
    """Storage addresses of what DDP keeps equal on all ranks: its parameters and their optimizer state.

    Buffers are not among them: batch norm statistics differ from rank to rank until somebody averages them.
    """
    import gc

    parameters: dict[int, torch.Tensor] = {}
    for thing in gc.get_objects():
        # Comparing types does not touch the object; isinstance would ask proxies for their class.
        if issubclass(type(thing), torch.nn.parallel.DistributedDataParallel):
            ignored: set[str] = getattr(thing, "parameters_to_ignore", set())
            for name, parameter in thing.module.named_parameters():
                if name not in ignored and not is_sharded(parameter):
                    parameters[id(parameter)] = parameter
    addresses = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()}
    for value in objects.values():
        if isinstance(value, torch.optim.Optimizer):
            for parameter, state in value.state.items():
                if id(parameter) in parameters:
                    addresses.update(
                        item.untyped_storage().data_ptr() for item in state.values() if isinstance(item, torch.Tensor)
                    )
    return frozenset(addresses - {0})
