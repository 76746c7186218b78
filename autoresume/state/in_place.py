"""Memory of live objects that a checkpoint's bytes may be read straight into.

Law: only where that is all that loading would do, and where everything fits; what can be judged without the
bytes is judged before one of them arrives. Then `load_state_dict` finds its values in place and copies
nothing. Anything else is read to memory of its own, and loaded as its object likes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from autoresume.format import tree
from autoresume.format.part import Chunk
from autoresume.state.decode import tensor_keys
from autoresume.state.stateful import state_of


def in_place_targets(
    objects: Mapping[str, Any], stored: Mapping[str, Any], describe: Callable[[str], Chunk]
) -> dict[str, torch.Tensor]:
    """The live tensors, by the keys of the stored ones that may be read into them; none if anything doesn't fit.

    `stored` is the checkpoint's tree. Raises CheckpointInvalid where that is malformed.
    """
    if not objects.keys() <= stored.keys():
        return {}
    times = Counter(tensor_keys(dict(stored)))
    found: list[tuple[str, torch.Tensor]] = []
    for name, target in objects.items():
        if not _is_stock(target):
            continue
        live = state_of(target)
        forms, keys = _forms(stored[name], describe)
        if not _fits(live, forms):
            return {}
        # A tensor with a second name in another object: that would go on with this one's memory.
        inside = Counter(tensor_keys(stored[name]))
        pairs = ((keys[id(form)], tensor) for form, tensor in _pairs(forms, live))
        found += [
            (key, tensor)
            for (key, strides), tensor in pairs
            if tensor.stride() == strides and inside[key] == times[key]
        ]
    return _apart(found)


def mismatches(state: Mapping[str, Any], live: Mapping[str, Any]) -> list[str]:
    """In what names, shapes and dtypes a stored module's state and a live one's differ: a line each."""
    lines = [f"only in the checkpoint: {key}" for key in state if key not in live]
    lines += [f"only in the live object: {key}" for key in live if key not in state]
    for key, value in live.items():
        stored = state.get(key)
        if isinstance(value, torch.Tensor) and isinstance(stored, torch.Tensor):
            if torch.nn.parameter.is_lazy(value):
                continue  # it takes the form of what it loads
            if stored.shape != value.shape:
                lines.append(f"{key} has shape {tuple(stored.shape)} in the checkpoint and {tuple(value.shape)} here")
            elif stored.dtype != value.dtype:
                lines.append(f"{key} has dtype {stored.dtype} in the checkpoint and {value.dtype} here")
    return lines


# -- objects that load as torch's own do --------------------------------------------------------------------


def _is_stock(target: Any) -> bool:
    """Whether loading its state only copies tensors to those of the same names, or takes them as they are."""
    if isinstance(target, torch.optim.Optimizer):
        # One in name only, that passes all on to another one, has methods of its own, and may lack torch's attributes.
        hooks = ("state_dict_pre", "state_dict_post", "load_state_dict_pre")
        return _methods(target, torch.optim.Optimizer) and not any(
            getattr(target, f"_optimizer_{which}_hooks", None) for which in hooks
        )
    return isinstance(target, torch.nn.Module) and all(map(_is_stock_module, target.modules()))


def _is_stock_module(module: torch.nn.Module) -> bool:
    saves = str(getattr(module._save_to_state_dict, "__module__", None)).startswith("torch.nn.modules.")
    hooks = module._state_dict_hooks, module._state_dict_pre_hooks
    return saves and _methods(module, torch.nn.Module, ("state_dict",)) and not any(hooks) and loads_as_torch(module)


def loads_as_torch(module: torch.nn.Module) -> bool:
    """Whether its own tensors are set to those of the same names and shapes, and nothing else is done."""
    part = str(getattr(module._load_from_state_dict, "__module__", None))
    ours = _methods(module, torch.nn.Module, ("load_state_dict",)) and part.startswith("torch.nn.modules.")
    return ours and not module._load_state_dict_pre_hooks


def _methods(target: Any, base: type, names: Iterable[str] = ("state_dict", "load_state_dict")) -> bool:
    return all(getattr(getattr(target, name), "__func__", None) is getattr(base, name) for name in names)


def _fits(live: Mapping[str, Any], forms: Any) -> bool:
    if not isinstance(forms, Mapping):
        return False
    if live.keys() == {"state", "param_groups"} == forms.keys():  # an optimizer's
        here, there = ([len(group["params"]) for group in one["param_groups"]] for one in (live, forms))
        return here == there
    odd = any(
        isinstance(value, torch.Tensor) != isinstance(forms.get(key), torch.Tensor) for key, value in live.items()
    )
    return not odd and not mismatches(forms, live)


# -- tensors, there and here --------------------------------------------------------------------------------


def _forms(stored: Any, describe: Callable[[str], Chunk]) -> tuple[Any, dict[int, tuple[str, tuple[int, ...]]]]:
    """A stored state with tensors that have no values; and the key and the strides of each, by its id."""
    keys: dict[int, tuple[str, tuple[int, ...]]] = {}

    def leaf(tagged: dict[str, Any]) -> torch.Tensor | None:
        if tagged[tree.TAG] != "tensor":
            return None
        chunk = describe(tagged["key"])
        try:
            form = torch.empty(chunk.shape, dtype=getattr(torch, chunk.dtype), device="meta")
        except RuntimeError:
            return None  # it claims to be larger than any memory: whoever reads it will say so
        keys[id(form)] = (tagged["key"], tuple(tagged.get("strides") or form.stride()))
        return form

    return tree.decode(stored, leaf), keys


def _pairs(forms: Any, live: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Stored tensors, and live ones in the same places that can take their values."""
    if isinstance(forms, torch.Tensor):
        if isinstance(live, torch.Tensor) and _takes(live, forms):
            yield forms, live.detach()
    elif isinstance(forms, Mapping) and isinstance(live, Mapping):
        for key, form in forms.items():
            yield from _pairs(form, live.get(key))
    elif isinstance(forms, (list, tuple)) and isinstance(live, (list, tuple)):
        for form, value in zip(forms, live):
            yield from _pairs(form, value)


def _takes(live: torch.Tensor, form: torch.Tensor) -> bool:
    return (
        type(live) in (torch.Tensor, torch.nn.Parameter)
        and live.device.type == "cpu"
        and live.layout is torch.strided
        and (live.shape, live.dtype) == (form.shape, form.dtype)
        and not (live.is_conj() or live.is_neg() or live.is_inference())
    )


def _apart(found: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Without tensors that share memory with another one: two blocks would be read to one place."""
    kept, end = {}, 0
    for key, tensor in sorted(found, key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() >= end:
            kept[key] = tensor
            end = tensor.data_ptr() + tensor.nbytes
    return kept
