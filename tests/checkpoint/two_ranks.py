"""Checkpoints of two ranks, written by the real code, that tests damage: a model, an RNG, and a pickle of each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.format import names
from autoresume.format.digest import canonical
from autoresume.format.names import CheckpointName
from autoresume.format.part import Replicas
from autoresume.load.read_checkpoint import Restored, choose_and_read
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot import layout
from autoresume.snapshot.copies import copy_all
from autoresume.state.capture import capture
from autoresume.storage import LocalStorage

RUN_ID = "the-run"
OLD, MIDDLE, NEWEST = (CheckpointName(step=step, incarnation=1, epoch=0, samples=step * 8) for step in (10, 20, 30))
SHARD_0, SHARD_1 = "shards/rank-00000.safetensors", "shards/rank-00001.safetensors"
PART_0, PART_1 = "parts/rank-00000.json", "parts/rank-00001.json"
PICKLE_0 = "pickles/rank-00000-env.pkl"


@dataclass
class Stateful:
    state: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return self.state


def state_of(step: int, rank: int) -> dict[str, Any]:
    return {
        "model": {"w": torch.arange(step, step + 7.0), "b": torch.tensor(float(step))},
        "rng": {"state": torch.full((5,), step * 2 + rank, dtype=torch.uint8)},
        "counter": {"step": step, "history": (step, float("inf"))},
    }


def write(
    storage: LocalStorage,
    name: CheckpointName,
    run_id: str = RUN_ID,
    commit: bool = True,
    replicas: tuple[Replicas | None, ...] = (None, None),
) -> None:
    """A checkpoint of two ranks: a model split over them, an RNG and a pickle of each."""
    for rank in range(2):
        objects = {key: Stateful(value) for key, value in state_of(name.step, rank).items()}
        captured = capture(objects, frozenset(), frozenset({"model"}))
        plan = layout.make_plan(captured.leaves, rank, 2, {"format": "pt"})
        image = bytearray(plan.bytes)
        plan.write_headers(memoryview(image))
        tensors = [leaf.tensor for leaf in captured.leaves]
        copy_all(plan.copies, tensors, memoryview(image))
        env = f"env of step {name.step:03d}, rank {rank}".encode()
        tree = {**captured.tree, "env": {"$": "pickled", "attachment": "env"}}
        attachments = {"env": (names.pickle_file(rank, "env"), env)}
        snapshot = Snapshot(
            run_id, name, rank, 2, 1.0, memoryview(image), plan.chunks_json, canonical(tree), {}, attachments
        )
        snapshot = dataclasses.replace(snapshot, replicas=replicas[rank])
        persist(storage, snapshot, lambda: None)
    if commit:
        assert commit_if_complete(storage, name, lambda: None) is not None


def restore(storage: LocalStorage) -> Restored | None:
    return choose_and_read(storage, RUN_ID, Ranks(), lambda: None, {})


def assert_is(restored: Restored | None, name: CheckpointName) -> None:
    """What was read is `name`, with every value that was written."""
    assert restored is not None
    assert str(restored.manifest.checkpoint) == str(name)
    expected = state_of(name.step, 0)
    assert restored.states["model"]["w"].equal(expected["model"]["w"])
    assert restored.states["model"]["b"].equal(expected["model"]["b"])
    assert restored.states["rng"]["state"].equal(expected["rng"]["state"])
    assert restored.states["counter"] == expected["counter"]
    assert restored.states["env"] == f"env of step {name.step:03d}, rank 0".encode()
