"""Weights from files that others wrote, or we.

Law: what a file is, is told by its content. No code of a file is ever run: pickles are read by a reader that knows
tensors and plain values, and makes nothing of anything else. Every tensor is on the CPU.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from autoresume.checkpoint.discover import judge
from autoresume.errors import CheckpointInvalid, UsageError
from autoresume.format.manifest import Manifest, ManifestHead
from autoresume.load.read_checkpoint import read_without_ranks
from autoresume.restore import torch_file
from autoresume.storage.moved import Moved

Tensors = dict[str, torch.Tensor]

_MANIFEST = "manifest.json"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_DCP = ".metadata"


@dataclass
class Weights:
    """What was found. `models` by the name that they have in the file, which is "" where that holds one and no name."""

    kind: str
    """Such as "safetensors file"."""
    models: dict[str, Tensors]
    about: dict[str, Any] = field(default_factory=dict)
    """What else is plainly known: step, epoch and the like."""


def read_weights(path: Path) -> Weights:
    """A file or a folder of any known kind. Raises UsageError for unknown ones, CheckpointInvalid for damaged ones."""
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise UsageError(f"there is no file {path}")
    with open(path, "rb") as file:
        beginning = file.read(16)
    if not beginning:
        raise CheckpointInvalid(f"{path} is empty: was it copied or downloaded to the end?")
    if torch_file.is_one(beginning):
        found = torch_file.read(path)
        return Weights(found.kind, found.models, found.about)
    if beginning[8:9] == b"{":
        return _safetensors(path)
    raise UsageError(
        f"{path} is no file of weights that is known here: known are {_KNOWN}. It begins with {beginning!r}"
    )


_KNOWN = (
    "safetensors files, torch files (.pt, .pth, .ckpt, .bin), checkpoints of Lightning, folders of torch's distributed "
    "checkpoint and of Hugging Face, and autoresume's own checkpoints"
)


def _folder(path: Path) -> Weights:
    readers: list[tuple[str, Callable[[Path], Weights]]] = [(_MANIFEST, _own), (_DCP, _distributed)]
    readers += [(name, _indexed(name)) for name in _INDEXES]
    readers += [(name, _inside(name)) for name in _SINGLE]
    for name, read in readers:
        if (path / name).exists():
            return read(path)
    files = sorted(file.name for file in path.iterdir())[:6]
    raise UsageError(f"{path} is no checkpoint that is known here: known are {_KNOWN}. It holds {', '.join(files)}")


def _inside(name: str) -> Callable[[Path], Weights]:
    return lambda folder: read_weights(folder / name)


def _safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
            return Weights("safetensors file", {"": tensors}, dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointInvalid(f"{path} is damaged, or no safetensors file: {error}") from error


def _indexed(name: str) -> Callable[[Path], Weights]:
    """A folder whose weights lie in several files, with an index that says which is where."""

    def read(folder: Path) -> Weights:
        try:
            where = json.loads((folder / name).read_bytes())["weight_map"]
            files = sorted({str(file) for file in where.values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointInvalid(f"{folder / name} is damaged: {error}") from error
        tensors: Tensors = {}
        for file in files:
            if Path(file).name != file:
                raise CheckpointInvalid(f"{folder / name} names the file {file!r}, which would lie elsewhere")
            if not (folder / file).exists():
                raise CheckpointInvalid(f"{folder} lacks {file}, one of the {len(files)} files that its index names")
            tensors |= read_weights(folder / file).models[""]
        missing = [key for key in where if key not in tensors]
        if missing:
            raise CheckpointInvalid(f"{folder}: {len(missing)} tensors are in no file, e.g. {missing[0]}")
        return Weights("folder of Hugging Face", {"": tensors})

    return read


def _distributed(folder: Path) -> Weights:
    """A folder of torch.distributed.checkpoint: its tensors. Other values in it are pickles, and are left alone."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = torch_file.metadata_of(folder / _DCP)
    stored = {key: one for key, one in metadata.state_dict_metadata.items() if isinstance(one, TensorStorageMetadata)}
    tensors = {key: torch.empty(one.size, dtype=one.properties.dtype) for key, one in stored.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no process group is there
            load(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
    except Exception as error:  # a damaged folder fails anywhere in torch
        raise CheckpointInvalid(f"{folder} is damaged: {type(error).__name__}: {error}") from error
    paths = metadata.planner_data if isinstance(metadata.planner_data, Mapping) else {}
    nested: dict[str, Any] = {}
    for key, tensor in tensors.items():
        path = [str(part) for part in paths.get(key, key.split(".", 1))]
        if len(path) > 1:
            nested.setdefault(path[0], {})[".".join(path[1:])] = tensor
        else:
            nested[path[0]] = tensor
    models, about = torch_file.models_of(nested if any(isinstance(one, dict) for one in nested.values()) else tensors)
    return Weights("folder of torch.distributed.checkpoint", models, about)


def _own(folder: Path) -> Weights:
    """A committed checkpoint, wherever it lies; each block is verified."""
    name = ManifestHead.from_bytes((folder / _MANIFEST).read_bytes()).checkpoint
    storage = Moved(folder, name)
    judged = judge(storage, name)
    if judged.problem is not None:
        raise CheckpointInvalid(f"{folder}: {judged.problem}")
    found = read_without_ranks(storage, Manifest.from_bytes(storage.read(name.manifest)))
    kinds = {key: one.get("kind") for key, one in dict(found.about.get("objects") or {}).items()}
    models: dict[str, Tensors] = {}
    for key, state in found.states.items():
        if key not in ("run", "state") and kinds.get(key, "module") == "module" and isinstance(state, Mapping):
            tensors = {inner: value for inner, value in state.items() if isinstance(value, torch.Tensor)}
            if tensors:
                models[key] = tensors
    about = {"step": name.step, "epoch": name.epoch, "samples": name.samples, "run_id": found.manifest.run_id}
    return Weights("checkpoint", models, about)
