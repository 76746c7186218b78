"""Can what an object gives as its state be put back? Tried on a copy, after the first step, while nothing is lost yet.

Law: a look: the object itself, its tensors and the process's generators are as they were. Torch's own classes are
believed, so are large objects, sharded ones, and those that can't be copied.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from autoresume.errors import StateError
from autoresume.format.digest import canonical
from autoresume.state import rng
from autoresume.state.capture import Captured, capture
from autoresume.state.decode import decode
from autoresume.state.in_place import loads_as_torch
from autoresume.state.pickled import pickled
from autoresume.state.sharded import is_sharded

log = logging.getLogger("autoresume")

_MOST_BYTES = 32 << 20
_MOST_VALUES = 10_000
_DEPTH = 6


def try_states(objects: Mapping[str, Any]) -> None:
    """Raises StateError for an object that does not take back what it gave; tells of one that is another then."""
    for name, target in objects.items():
        for part, one in _to_be_tried(name, target):
            generators = rng.get_rng_state()
            try:
                twin = _copied(one)
                if twin is not None:
                    _try(part, one, twin)
            finally:
                rng.set_rng_state(generators)


def _to_be_tried(name: str, target: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(target, torch.nn.Module):
        done = ""
        for path, part in target.named_modules():
            inside = bool(done) and path.startswith(done)
            if not inside and not (loads_as_torch(part) and _gives_no_more(part)):
                done = f"{path}."
                if not any(map(is_sharded, [*part.parameters(), *part.buffers()])):
                    yield f"{name}.{path}" if path else name, part
    elif not isinstance(target, pickled) and not type(target).__module__.startswith(("torch.", "autoresume.")):
        yield name, target


def _gives_no_more(module: torch.nn.Module) -> bool:
    return type(module).get_extra_state is torch.nn.Module.get_extra_state


def _copied(target: Any) -> Any:
    """None where that can't be: a lock, a socket, a way of its own to be copied."""
    with contextlib.suppress(Exception):
        return copy.deepcopy(target) if _is_small(target) else None
    return None


def _try(name: str, target: Any, twin: Any) -> None:
    try:
        given = _captured(target)
        tensors = {leaf.key: leaf.tensor.clone() for leaf in given.leaves}
        with torch.no_grad():
            twin.load_state_dict(decode(given.tree, tensors)["tried"])
        back = _captured(twin)
    except StateError:
        raise
    except Exception as error:
        raise StateError(
            f"{name!r} does not take back the state that it gives: {type(error).__name__}: {error}. This was tried on "
            "a copy, after the first step; a run that is interrupted could not go on. Mend its load_state_dict; or, if "
            f"it can be pickled, track it as pickled({name.rpartition('.')[2]})."
        ) from error
    other = _first_difference(given, back)
    if other is not None:
        log.warning(
            "%s: what it is after load_state_dict(state_dict()) is not what it was: %s. This was tried on a copy. "
            "After a resume it would be another one: make state_dict and load_state_dict exact inverses.",
            name,
            other,
        )


def _captured(target: Any) -> Captured:
    return capture({"tried": target}, frozenset(), frozenset())


def _first_difference(one: Captured, other: Captured) -> str | None:
    tensors = {leaf.key: leaf.tensor for leaf in other.leaves}
    for leaf in one.leaves:
        key, there = leaf.key.removeprefix("tried/"), tensors.get(leaf.key)
        if there is None or there.shape != leaf.tensor.shape:
            return f"{key} has another form"
        if not torch.equal(torch.nan_to_num(leaf.tensor), torch.nan_to_num(there)):
            return f"{key} has other values"
    return "values that are no tensors differ" if canonical(one.tree) != canonical(other.tree) else None


def _is_small(target: Any) -> bool:
    """So that a copy costs nothing to speak of."""
    seen: set[int] = set()

    def size(value: Any, depth: int) -> int:
        if id(value) in seen or depth > _DEPTH:
            return 0
        seen.add(id(value))
        if len(seen) > _MOST_VALUES:
            return _MOST_BYTES
        if isinstance(value, torch.Tensor):
            return int(value.nbytes) if value.device.type == "cpu" else _MOST_BYTES
        nbytes = getattr(value, "nbytes", None)
        if isinstance(nbytes, int):
            return nbytes
        items = (
            list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
        )
        return sum(size(item, depth + 1) for item in [*items, *getattr(value, "__dict__", {}).values()])

    return size(target, 0) < _MOST_BYTES
