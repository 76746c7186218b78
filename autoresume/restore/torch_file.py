"""Files that torch.save wrote: tensors and plain values, and nothing that runs.

Law: nothing of the file is called or imported but what is listed here. What a file asks for beside that becomes an
inert placeholder, which keeps what it was given: a module that was pickled whole shows its tensors all the same.
"""

from __future__ import annotations

import collections
import enum
import importlib
import pickle
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from autoresume.errors import CheckpointInvalid

Tensors = dict[str, torch.Tensor]

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_NAMES_OF_ONE = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""What files call the one model that they hold: no name of its own."""
_NO_MODELS = (
    "optim",
    "opt",
    "scheduler",
    "lr_",
    "scaler",
    "rng",
    "loops",
    "callbacks",
    "hyper",
    "args",
    "config",
    "buffer",
)
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
            "_rebuild_parameter_with_state", "_rebuild_device_tensor_from_cpu_tensor")  # fmt: skip
_BUILTINS = ("set", "frozenset", "list", "dict", "tuple", "int", "float", "str", "bool", "complex", "bytes",
             "bytearray", "range", "slice", "object")  # fmt: skip
_DEPTH = 64
_NUMPY_2 = hasattr(np, "_core")


class Placeholder:
    """Something that a file asked for and that is not made: its name, and what it was given."""

    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        made = super().__new__(cls)
        made.args, made.state, made.items = args, None, []
        return made

    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    def add(self, item: Any) -> None:
        self.items.append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return self

    def __hash__(self) -> int:
        return id(self)


_InPython: Any = pickle._Unpickler


class _Careful(_InPython):  # type: ignore[misc]
    """Python's unpickler, written in Python, so that a file can give state to what it made, and to no class that is
    there already."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_InPython.dispatch)

    def load_build(self) -> None:
        if isinstance(self.stack[-2], type):
            raise pickle.UnpicklingError(f"it would change the class {self.stack[-2].__name__}")
        _InPython.load_build(self)

    dispatch[pickle.BUILD[0]] = load_build


class RestrictedUnpickler(_Careful):
    """Knows tensors and plain values; `refused` are the names that it made placeholders for."""

    refused: list[str]

    def find_class(self, module: str, name: str) -> Any:
        found = known(module, name)
        if found is not None:
            return found
        if not hasattr(self, "refused"):
            self.refused = []
        self.refused.append(f"{module}.{name}")
        return type("Placeholder", (Placeholder,), {"name": f"{module}.{name}"})


def known(module: str, name: str) -> Any:
    """What a file may ask for, or None."""
    if module == "collections" and name in ("OrderedDict", "defaultdict", "Counter", "deque"):
        return getattr(collections, name)
    if module in ("builtins", "__builtin__") and name in _BUILTINS:
        return getattr(__import__("builtins"), name)
    if module == "torch._utils" and name in _REBUILD:
        return getattr(torch._utils, name, None)
    if module in ("torch", "torch.storage") and name.endswith("Storage"):
        return getattr(torch.storage if module == "torch.storage" else torch, name, None)
    if module == "torch" and name in ("Size", "device", "Tensor"):
        return getattr(torch, name)
    if module == "torch" and isinstance(getattr(torch, name, None), (torch.dtype, torch.layout, torch.memory_format)):
        return getattr(torch, name)
    if module == "torch.nn.parameter" and name == "Parameter":
        return torch.nn.Parameter
    if module.startswith("numpy") and name in ("_reconstruct", "scalar") and module.endswith("multiarray"):
        return getattr(importlib.import_module("numpy._core.multiarray" if _NUMPY_2 else "numpy.core.multiarray"), name)
    if module == "numpy" and name in ("ndarray", "dtype"):
        return getattr(np, name)
    if module == "numpy.dtypes" and isinstance(getattr(np.dtypes, name, None), type):
        return getattr(np.dtypes, name)
    return None


@dataclass
class Read:
    kind: str
    models: dict[str, Tensors]
    about: dict[str, Any]


def is_one(beginning: bytes) -> bool:
    """Whether a file that begins so can be torch's: a zip archive, or a pickle."""
    return beginning.startswith((_ZIP, _PICKLE))


def read(path: Path) -> Read:
    """All tensors of a file, on the CPU. Raises CheckpointInvalid."""
    value, refused = load(path)
    models, about = models_of(value)
    lightning = isinstance(value, Mapping) and "pytorch-lightning_version" in value
    if not models:
        hint = f"; it asks for {refused[0]}, of which nothing is run" if refused else ""
        raise CheckpointInvalid(f"{path} holds no weights: no dict of tensors is in it{hint}")
    return Read("checkpoint of Lightning" if lightning else "torch file", models, about)


def load(path: Path) -> tuple[Any, list[str]]:
    """What a file holds, with placeholders for what is not known; and the names of those. Raises CheckpointInvalid."""
    refused: list[str] = []

    class Unpickler(RestrictedUnpickler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.refused = refused

    module = types.ModuleType("restricted_pickle")
    module.Unpickler = Unpickler  # type: ignore[attr-defined]
    module.load = lambda file, **options: Unpickler(file, **options).load()  # type: ignore[attr-defined]
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(one.compress_type for one in archive.infolist()):
                    raise CheckpointInvalid(f"{path} is an archive, and none that torch.save writes")
        value = torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)
    except CheckpointInvalid:
        raise
    except Exception as error:  # whatever a damaged file does to torch and to pickle
        hint = " It was copied or downloaded to the end?" if "central directory" in str(error) else ""
        raise CheckpointInvalid(f"{path} is damaged, or no file of torch.save: {_first_line(error)}.{hint}") from error
    return value, refused


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def models_of(value: Any) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The models in what a file holds, by name ("" for one without), and plain values beside them."""
    if isinstance(value, Placeholder):
        found = _pickled_module(value)
        return ({"": found} if found else {}), {}
    if not isinstance(value, Mapping):
        return {}, {}
    flat = _tensors(value)
    if flat and not any(isinstance(inner, Mapping) for inner in value.values()):
        return {"": flat}, _plain(value)
    models: dict[str, Tensors] = {}
    for name, inner in value.items():
        if not isinstance(name, str) or name.lower().startswith(_NO_MODELS):
            continue
        tensors = _pickled_module(inner) if isinstance(inner, Placeholder) else _tensors(inner)
        if tensors:
            models[name] = tensors
    if not models and flat:
        models = {"": flat}
    if len(models) == 1 and next(iter(models)) in _NAMES_OF_ONE:
        models = {"": next(iter(models.values()))}
    return models, _plain(value)


def _tensors(value: Any) -> Tensors:
    """The tensors of a dict of names, if it is one; of a nested one, with dotted names."""
    return dict(_walk("", value, 0)) if isinstance(value, Mapping) else {}


def _walk(path: str, value: Any, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value.detach()
    elif isinstance(value, Mapping) and depth < _DEPTH:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _walk(f"{path}.{key}" if path else key, inner, depth + 1)


def _pickled_module(value: Placeholder, prefix: str = "", depth: int = 0) -> Tensors:
    """The state dict of a module that was pickled whole."""
    found: Tensors = {}
    if not isinstance(value.state, Mapping) or depth > _DEPTH:
        return found
    for kind in ("_parameters", "_buffers"):
        for name, item in dict(value.state.get(kind) or {}).items():
            if isinstance(item, torch.Tensor):
                found[f"{prefix}{name}"] = item.detach()
    for name, inner in dict(value.state.get("_modules") or {}).items():
        if isinstance(inner, Placeholder):
            found |= _pickled_module(inner, f"{prefix}{name}.", depth + 1)
    return found


def _plain(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, (bool, int, float, str))
    }


def metadata_of(path: Path) -> Any:
    """The metadata of a folder of torch.distributed.checkpoint: a pickle of a few classes, and no others.

    Raises CheckpointInvalid.
    """
    try:
        with open(path, "rb") as file:
            return _MetadataUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise CheckpointInvalid(
            f"{path} is damaged, or asks for what no such file needs: {_first_line(error)}"
        ) from error


def _member(kind: Any, name: Any) -> Any:
    """What `getattr` may do here: some Pythons (seen: 3.11.2) pickle the members of an enumeration by it."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum) and name in kind.__members__):
        raise pickle.UnpicklingError("builtins.getattr")
    return kind[name]


class _MetadataUnpickler(_Careful):
    def find_class(self, module: str, name: str) -> Any:
        from torch.distributed.checkpoint import filesystem, metadata

        if module == metadata.__name__ and isinstance(getattr(metadata, name, None), type):
            return getattr(metadata, name)
        if module == filesystem.__name__ and name == "_StorageInfo":
            return getattr(filesystem, name)
        if module == "torch.serialization" and name == "_get_layout":
            return getattr(torch.serialization, name)
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module.startswith("pathlib") and name in ("PosixPath", "PurePosixPath", "Path"):
            return Path
        found = known(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return found
