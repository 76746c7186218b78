"""What a training script holds beside what it tracks: the variables of its frames, and what hangs on them.

Law: a look, which changes nothing, and draws nothing. Found are models, optimizers, schedulers, generators, numbers and
other plain values, in variables of functions (those of enclosing functions, too), in globals of the script's modules,
and in attributes of objects whose class the script's own code makes. What is installed is not the script's own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

import autoresume
from autoresume.format.digest import digest
from autoresume.state.generator import GENERATOR_TYPES, GeneratorState
from autoresume.state.pickled import pickled
from autoresume.state.stateful import unwrap

_DEPTH = 3
_MOST_ITEMS = 64
_MOST_BYTES = 1 << 22
_MOST_VARIABLES = 400
_SHOWN = 40
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_INSTALLED = tuple(
    os.path.join(os.path.realpath(path), "")
    for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    if path
)
_OURS = os.path.join(os.path.dirname(os.path.realpath(autoresume.__file__)), "")


class Variable(NamedTuple):
    kind: str
    """model, optimizer, scheduler, generator, tensor (that is trained), object (with a state_dict), value."""
    digest: str
    shown: str


def content_digest(value: Any) -> str:
    """A digest of anything by what it holds: tensors, plain values, generators, attributes; else its type."""
    return digest(b"".join(_bytes(value, 0)))


def tensor_bytes(value: torch.Tensor) -> bytes:
    local = getattr(value, "_local_tensor", value).detach()
    if local.layout is not torch.strided:
        local = local.to_dense()
    plain = local.cpu().contiguous().reshape(-1)
    return str((local.dtype, tuple(local.shape))).encode() + plain.view(torch.uint8).numpy().tobytes()


def _bytes(value: Any, depth: int) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield tensor_bytes(value)
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        yield str((value.dtype, value.shape)).encode() + value.tobytes()
    elif isinstance(value, _PLAIN):
        yield f"{type(value).__name__}:{value!r};".encode()
    elif isinstance(value, Mapping) and depth < 8:
        for key, item in value.items():
            yield f"{key!r}=".encode()
            yield from _bytes(item, depth + 1)
    elif isinstance(value, (list, tuple)) and depth < 8:
        yield f"{type(value).__name__}{len(value)}(".encode()
        for item in value:
            yield from _bytes(item, depth + 1)
    elif isinstance(value, (set, frozenset)):
        yield "".join(sorted(map(repr, value))).encode()
    elif isinstance(value, GENERATOR_TYPES):
        yield from _bytes(state_of(value), depth + 1)
    elif isinstance(getattr(value, "__dict__", None), dict) and not callable(value) and depth < 8:
        yield type(value).__qualname__.encode()
        yield from _bytes(vars(value), depth + 1)
    else:
        yield f"<{type(value).__qualname__}>".encode()


def look_at_frames(tracked: set[int], digest_of: Callable[[Any], str] = content_digest) -> Look:
    """What the frames that lead here hold. Leaves out objects whose id is in `tracked`, and all of ours."""
    found = Look(tracked, digest_of)
    found.frames(sys._getframe(1))
    return found


class Look:
    """`found` is what there is by name: `train: ema`, `dataset.rng`; `objects` are those of its objects that have
    state, `plain` the names of numbers, words and the like."""

    def __init__(self, tracked: set[int], digest_of: Callable[[Any], str]) -> None:
        self._seen = set(tracked)
        self._digest_of = digest_of
        self.found: dict[str, Variable] = {}
        self.objects: dict[str, Any] = {}
        self.plain: set[str] = set()

    def frames(self, frame: types.FrameType | None) -> None:
        modules: dict[str, dict[str, Any]] = {}
        while frame is not None:
            if _is_users(frame.f_code.co_filename):
                name = frame.f_code.co_name
                if name != "<module>":
                    self._variables(f"{name}: ", frame.f_locals)
                modules[str(frame.f_globals.get("__name__"))] = frame.f_globals
            frame = frame.f_back
        for values in modules.values():
            self._variables("", {key: value for key, value in values.items() if not key.startswith("__")})

    def attributes(self, name: str, value: Any) -> None:
        """What has state of its own inside of something that is tracked."""
        for key, item in list(vars(value).items()):
            with contextlib.suppress(Exception):
                if kind_of(item) is not None:
                    self._one(f"{name}.{key}", item, 0)

    def _variables(self, prefix: str, values: Mapping[str, Any]) -> None:
        for name, value in list(values.items()):
            if name == "_":
                continue
            # Somebody else's attributes, repr and state_dict are called, which may raise anything.
            with contextlib.suppress(Exception):
                self._one(f"{prefix}{name}", value, 0)

    def _one(self, name: str, value: Any, depth: int) -> None:
        if len(self.found) >= _MOST_VARIABLES or isinstance(value, (types.ModuleType, type)):
            return
        if isinstance(value, _PLAIN):
            self.found[name] = Variable("value", digest(repr(value).encode()), short(value))
            self.plain.add(name)
            return
        if type(value).__module__.startswith("autoresume."):
            value = getattr(value, "dataset", None)  # of a loader of ours
            name = f"{name}.dataset"
        value = unwrap(value)
        if value is None or id(value) in self._seen:
            return
        self._seen.add(id(value))
        kind = kind_of(value)
        if kind is not None:
            self._add(name, kind, value)
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            if isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf:
                self.objects[name] = value
            size = value.numel() * value.element_size() if isinstance(value, torch.Tensor) else value.nbytes
            if size <= _MOST_BYTES:
                self.found[name] = Variable(
                    "tensor" if name in self.objects else "value",
                    self._digest_of(value),
                    f"{type(value).__name__}{list(value.shape)}",
                )
        elif isinstance(value, types.FunctionType):
            for free, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
                try:
                    self._one(f"{name}.{free}", cell.cell_contents, depth + 1)
                except ValueError:  # not set yet
                    continue
        elif isinstance(value, types.MethodType):
            if depth < _DEPTH:
                self._one(name, value.__self__, depth + 1)
        elif isinstance(value, (list, tuple, set, frozenset, Mapping)):
            self._collection(name, value, depth)
        elif depth < _DEPTH:
            self._attributes(name, value, depth)

    def _collection(self, name: str, value: Any, depth: int) -> None:
        items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
        if len(items) > _MOST_ITEMS or depth >= _DEPTH:
            return
        if all(isinstance(item, _PLAIN) for _, item in items):
            self.found[name] = Variable("value", self._digest_of(value), short(value))
            return
        for key, item in items:
            self._one(f"{name}[{key!r}]", item, depth + 1)

    def _attributes(self, name: str, value: Any, depth: int) -> None:
        """Of the script's own classes all that they hold; of a loader, its data set and samplers."""
        if isinstance(value, torch.utils.data.DataLoader):
            held = {key: getattr(value, key, None) for key in ("dataset", "sampler", "batch_sampler", "generator")}
        elif isinstance(value, torch.utils.data.Dataset) or _is_users_class(type(value)):
            held = dict(getattr(value, "__dict__", {}))
        else:
            return
        for key, item in held.items():
            if not callable(item) or kind_of(item) is not None or isinstance(item, types.FunctionType):
                self._one(f"{name}.{key}", item, depth + 1)

    def _add(self, name: str, kind: str, value: Any) -> None:
        text = self._digest_of(state_of(value))
        self.found[name] = Variable(kind, text, type(value).__name__)
        self.objects[name] = value
        if kind == "model":
            self._seen.update(map(id, value.modules()))
            self._seen.update(map(id, value.parameters()))


def kind_of(value: Any) -> str | None:
    if isinstance(value, torch.nn.Module):
        return "model" if next(iter(value.state_dict()), None) is not None else None
    if isinstance(value, torch.optim.Optimizer):
        return "optimizer"
    if isinstance(value, (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)):
        return "scheduler"
    if isinstance(value, GENERATOR_TYPES):
        return "generator"
    return "object" if _has_state(value) else None


_NO_OBJECTS = (torch.nn.Module, torch.utils.data.DataLoader, torch.utils.data.Dataset, torch.utils.data.Sampler)
"""Data are looked after by their loaders."""


def _has_state(value: Any) -> bool:
    """It offers its state, and takes it back: a GradScaler, an average of weights, a script's own buffer."""
    methods = (getattr(type(value), name, None) for name in ("state_dict", "load_state_dict"))
    return all(map(callable, methods)) and not isinstance(value, _NO_OBJECTS)


def state_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    if isinstance(value, GENERATOR_TYPES):
        return GeneratorState(value).state_dict()
    if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        return {key: one for key, one in value.state_dict().items() if isinstance(one, (*_PLAIN, list))}
    return value.state_dict()


def ids_of(objects: Mapping[str, Any], state: Mapping[str, Any]) -> set[int]:
    """Of all that is tracked, of what it is made of, and of what `run.state` holds."""
    found = set(_reached(state, 0))
    for outer in objects.values():
        if isinstance(outer, pickled):
            found.update(_reached(outer.value, 0))
        for value in inside(outer):
            found.add(id(value))
            if isinstance(value, torch.nn.Module):
                for parts in (value.modules(), value.parameters(), value.buffers()):
                    found.update(map(id, parts))
            elif isinstance(value, torch.optim.lr_scheduler.LRScheduler):
                found.update(map(id, getattr(value, "_schedulers", ())))
    return found


def _reached(value: Any, depth: int) -> Iterator[int]:
    """What is stored with it: what is in collections and attributes."""
    yield id(value)
    if depth >= _DEPTH or isinstance(value, (torch.Tensor, np.ndarray, *_PLAIN)):
        return
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple, set)) else ()
    for item in [*items, *getattr(value, "__dict__", {}).values()][:_MOST_VARIABLES]:
        yield from _reached(item, depth + 1)


def inside(value: Any) -> list[Any]:
    """The object that was tracked, where it is wrapped by us."""
    ours = type(value).__module__.startswith("autoresume.")
    return [value, *vars(value).values()] if ours else [value]


@functools.lru_cache(maxsize=4096)
def _is_users(file: str) -> bool:
    path = os.path.realpath(file)
    return not file.startswith("<") and not path.startswith((*_INSTALLED, _OURS))


def _is_users_class(kind: type) -> bool:
    if kind.__module__ == "__main__":
        return True
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    return bool(file) and _is_users(str(file))


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
