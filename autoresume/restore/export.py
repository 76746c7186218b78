"""A model out of a checkpoint, in the form that others read; and their files into a run.

Law: an export is whole under its name or not there, and takes nobody's place unasked. It says where it came from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import string
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from autoresume.errors import UsageError
from autoresume.restore import origins
from autoresume.restore.download import download_origin
from autoresume.restore.weight_files import Tensors, Weights, read_weights


def load_model_state(
    source: str | os.PathLike[str] = ".", select: str = "latest", model: str | None = None, device: str = "cpu"
) -> Tensors:
    """The weights of a model, tensors by name, whole whatever the number of ranks, ready for `load_state_dict`.

    `source` is what `restore.from` takes (a run's folder or id, a checkpoint, a file), and by default the run in the
    working directory; `select` what `restore.select` takes. With several models `model` says which. `device` "auto" is
    the accelerator, if there is one. Raises UsageError, CheckpointInvalid.
    """
    found, _ = find_weights(os.fspath(source), select)
    tensors = pick_model(found, model)
    where = _device(device)
    return {key: tensor.to(where) for key, tensor in tensors.items()}


def _device(word: str) -> torch.device:
    if word != "auto":
        return torch.device(word)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def find_weights(source: str, select: str = "latest") -> tuple[Weights, dict[str, Any]]:
    """Weights by what people write, and what is known of them: run, stage, step, epoch, samples, tag, checkpoint."""
    origin = download_origin(origins.find_origin(source, Path.cwd()), Path.cwd())
    if origin.foreign is not None:
        found = read_weights(origin.foreign)
        return found, {"run": origin.foreign.stem, "checkpoint": select, **found.about}
    place = origins.select_checkpoint(origin, select)
    found = read_weights(place.storage.path(place.name.folder))
    run = place.storage.root.name
    spelled = select if select == "latest" or select.startswith("best") else str(place.name).rpartition("-")[0]
    return found, {**found.about, "run": run, "stage": "", "tag": select, "checkpoint": spelled}


def pick_model(weights: Weights, model: str | None) -> Tensors:
    """One of the models. Raises UsageError that lists them."""
    if model is None and len(weights.models) == 1:
        return next(iter(weights.models.values()))
    known = ", ".join(name or "(one without a name)" for name in weights.models) or "none"
    if model is None:
        raise UsageError(f"there are several models: {known}; say which with model=..., or --model")
    if model in weights.models:
        return weights.models[model]
    raise UsageError(f"there is no model {model!r}; there are {known}")


def file_name(template: str, fields: Mapping[str, Any]) -> str:
    """A file's name by a template such as "{model}_cp={checkpoint}_model.th". Raises UsageError for unknown fields."""
    known = {"timestamp": time.strftime("%Y%m%d-%H%M%S"), "info": "", **fields}
    wanted = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(
            f"the template {template!r} has the field {unknown[0]!r}, which nothing fills; there are "
            f"{', '.join(sorted(known))}, and whatever --field NAME=VALUE gives"
        )
    filled = template.format_map(known)
    # A field that is empty leaves no separator of its own: model_cp=..., not model__cp=...
    return re.sub(r"_{2,}", "_", filled)


def export(
    tensors: Tensors,
    about: Mapping[str, Any],
    target: Path,
    kind: str,
    max_shard_bytes: int = 5 * 10**9,
    force: bool = False,
) -> Path:
    """Write `tensors` in one of the forms of `_WRITERS`, atomically. Raises UsageError if something is there."""
    if target.exists() and not force:
        raise UsageError(f"{target} is there already; give another name, or --force to replace it")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    metadata = {"format": "pt", **{key: str(value) for key, value in about.items()}}
    plain = {key: tensor.contiguous() for key, tensor in tensors.items()}
    try:
        _WRITERS[kind](plain, metadata, temporary, max_shard_bytes)
        _sync(temporary)
        if target.exists():
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    return target


def _safetensors(tensors: Tensors, metadata: dict[str, str], target: Path, most: int) -> None:
    save_file(_apart(tensors), str(target), metadata=metadata)


def _apart(tensors: Tensors) -> Tensors:
    """Tensors that share memory (tied weights) as copies: safetensors files have none that do."""
    seen: set[int] = set()
    found = {}
    for key, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        found[key] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return found


def _torch(tensors: Tensors, metadata: dict[str, str], target: Path, most: int) -> None:
    torch.save(tensors, target)


def _dcp(tensors: Tensors, metadata: dict[str, str], target: Path, most: int) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group is there
        save(tensors, checkpoint_id=str(target), no_dist=True)


def _huggingface(tensors: Tensors, metadata: dict[str, str], target: Path, most: int) -> None:
    target.mkdir()
    shards: list[Tensors] = [{}]
    size = 0
    for key, tensor in _apart(tensors).items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], str(target / "model.safetensors"), metadata=metadata)
        return
    where = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, str(target / file), metadata=metadata)
        where.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total, **metadata}, "weight_map": where}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


_WRITERS: dict[str, Callable[[Tensors, dict[str, str], Path, int], None]] = {
    "safetensors": _safetensors,
    "torch": _torch,
    "dcp": _dcp,
    "huggingface": _huggingface,
}


def _sync(path: Path) -> None:
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if file.is_dir():
            _sync_folder(file)
            continue
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
