"""Our checkpoints for `torch.distributed.checkpoint.load`: in plain PyTorch, without a run.

Law: PyTorch's planner decides what is wanted; where it lies, and whether it is what was written, is decided by
the reader that restores runs. Nothing is unpickled: what is no tensor is decoded, and handed over as bytes
because the planner takes nothing else.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from autoresume.checkpoint.discover import judge
from autoresume.errors import CheckpointInvalid, UsageError
from autoresume.format import names, tree
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk
from autoresume.load.boxes import Box
from autoresume.load.reader import CheckpointReader
from autoresume.state.decode import decode, tensor_keys
from autoresume.storage import LocalStorage


class CheckpointStorageReader(StorageReader):
    """Reads `<run>/checkpoints/<name>`; `rank` is the one whose own state (its RNGs, its buffers) is meant.

    Names are those that DCP gives to a nested state dict: what is tracked as `model` is loaded by
    `dcp.load({"model": model.state_dict()}, storage_reader=CheckpointStorageReader(path))`, into plain
    tensors, and into DTensors however they are sharded. Every byte that is used is verified. Raises
    UsageError for a path that is no checkpoint's, CheckpointInvalid for what is damaged or was never
    committed (DCP wraps it into its own CheckpointException, or AssertionError).
    """

    def __init__(self, path: str | os.PathLike[str], rank: int = 0) -> None:
        self.rank = rank
        self.reset(path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self._storage, self._name = _place(checkpoint_id)
        self._reader: CheckpointReader | None = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        try:
            _place(checkpoint_id)
        except UsageError:
            return False
        return True

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        judged = judge(self._storage, self._name)
        if judged.problem is not None or judged.manifest is None:
            raise CheckpointInvalid(f"checkpoint {self._name} can't be loaded: {judged.problem}")
        if not 0 <= self.rank < judged.manifest.world_size:
            raise UsageError(f"rank {self.rank} is none of the {judged.manifest.world_size} that wrote {self._name}")
        self._reader = reader = CheckpointReader(self._storage, judged.manifest, self.rank)
        self._values: dict[str, Any] = {}
        found: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        for name, way in _flat(reader.tree).items():
            self._values[name] = value = _at(reader.tree, way)
            found[name] = _tensor(reader, value["key"]) if _has_tag(value, "tensor") else BytesStorageMetadata()
        return Metadata(found, storage_meta=StorageMeta())

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        assert self._reader is not None
        tensors = [item for item in plan.items if item.type == LoadItemType.TENSOR]
        boxes = [(self._values[item.storage_index.fqn]["key"], _box(item)) for item in tensors]
        for item, source in zip(tensors, self._reader.read_boxes(boxes)):
            target = planner.resolve_tensor(item).detach()
            target.copy_(source)
            planner.commit_tensor(item, target)
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, self._bytes(self._values[item.storage_index.fqn]))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _bytes(self, value: Any) -> io.BytesIO:
        assert self._reader is not None
        wanted: dict[str, Box | None] = dict.fromkeys(tensor_keys(value))
        stream = io.BytesIO()
        torch.save(decode(value, self._reader.read(wanted)), stream)
        stream.seek(0)
        return stream


def _place(path: str | os.PathLike[str]) -> tuple[LocalStorage, CheckpointName]:
    folder = Path(path).absolute()
    name = CheckpointName.parse(folder.name)
    if name is None or folder.parent.name != names.CHECKPOINTS:
        raise UsageError(
            f"{os.fspath(path)!r} is no checkpoint; give its folder, e.g. runs/train/checkpoints/E3_U12000_S384000-0004"
        )
    return LocalStorage(folder.parent.parent), name


def _has_tag(value: Any, tag: str) -> bool:
    return isinstance(value, dict) and value.get(tree.TAG) == tag


def _tensor(reader: CheckpointReader, key: str) -> TensorStorageMetadata:
    whole = reader.describe(key)
    chunks: list[Chunk] = [chunk for _, chunk in reader.sources(key)]
    return TensorStorageMetadata(
        TensorProperties(dtype=getattr(torch, whole.dtype)),
        torch.Size(whole.shape),
        [ChunkStorageMetadata(torch.Size(chunk.offset), torch.Size(chunk.size)) for chunk in chunks],
    )


def _box(item: ReadItem) -> Box:
    """What of the whole tensor is wanted: DCP counts from the beginning of a chunk."""
    begin = item.storage_index.offset or torch.Size([0] * len(item.lengths))
    return tuple(b + o for b, o in zip(begin, item.storage_offsets)), tuple(item.lengths)


def _flat(stored: Any) -> dict[str, tuple[str | int, ...]]:
    """DCP's name of everything in a state tree, with the way to it. Pickled objects have none: they stay unread."""
    if not isinstance(stored, dict):
        raise CheckpointInvalid("the state tree is not an object")
    readable = {name: value for name, value in stored.items() if not _has_tag(value, "pickled")}
    shapes = tree.decode(readable, lambda tagged: torch.empty(0) if _has_tag(tagged, "tensor") else None)
    try:
        return dict(flatten_state_dict(shapes)[1])
    except ValueError as error:
        raise UsageError(f"DCP has one name for two things in this checkpoint: {error}") from error


def _at(stored: Any, way: tuple[str | int, ...]) -> Any:
    for step in way:
        if isinstance(stored, list):
            stored = stored[int(step)]
        elif tree.TAG in stored:
            # A dict whose keys are no plain strings: DCP calls them by their text.
            stored = next(value for key, value in stored["items"] if str(tree.decode(key, lambda _: None)) == step)
        else:
            stored = stored[step]
    return stored
