"""Our checkpoints in the hands of torch.distributed.checkpoint, in one process and with plain tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.errors import CheckpointInvalid, UsageError
from autoresume.format.digest import canonical
from autoresume.format.names import CheckpointName, pickle_file
from autoresume.load.dcp import CheckpointStorageReader
from autoresume.snapshot import layout
from autoresume.snapshot.copies import copy_all
from autoresume.state.capture import capture
from autoresume.state.namespace import Namespace
from autoresume.storage import LocalStorage

NAME = CheckpointName(step=1, incarnation=1, epoch=0, samples=0)
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 5))
    model[3].weight = model[2].weight
    return model


def trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = model_of(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of two ranks: model and optimizer are split over them, `mine` and the values are each rank's own."""
    storage = LocalStorage(tmp_path)
    model, optimizer = trained(1)
    for rank in range(2):
        values = Namespace()
        values.mine, values.rank, values.history = torch.full((3,), float(rank)), rank, [(1, 2.5), b"x"]
        values.table = {0: torch.arange(4) + rank, "0b": [torch.ones(2) * rank, 7]}
        values.array = torch.arange(3).numpy() + rank
        objects: dict[str, Any] = {"model": model, "optimizer": optimizer, "state": values}
        captured = capture(objects, frozenset(), frozenset({"model", "optimizer"}))
        plan = layout.make_plan(captured.leaves, rank, 2, {"format": "pt"})
        second = frozenset(chunk.name for chunk in plan.chunks[::2])
        plan = layout.make_plan(captured.leaves, rank, 2, {"format": "pt"}, second)
        image = bytearray(plan.bytes)
        plan.write_headers(memoryview(image))
        tensors = [leaf.tensor for leaf in captured.leaves]
        copy_all(plan.copies, tensors, memoryview(image))
        tree = {**captured.tree, "env": {"$": "pickled", "attachment": "env"}}
        files = {"env": (pickle_file(rank, "env"), b"no pickle")}
        persist(
            storage,
            Snapshot(
                "run",
                NAME,
                rank,
                2,
                1.0,
                memoryview(image),
                plan.chunks_json,
                canonical(tree),
                {},
                files,
                first_bytes=plan.first_bytes,
            ),
            lambda: None,
        )
    assert commit_if_complete(storage, NAME, lambda: None) is not None
    return tmp_path / NAME.folder


def load(state: dict[str, Any], folder: Path, rank: int = 0) -> dict[str, Any]:
    dcp.load(state, storage_reader=CheckpointStorageReader(folder, rank))
    return state


def test_a_model_and_its_optimizer(folder: Path) -> None:
    """State dicts of other values come out equal, bit for bit, tied weights and values that are no tensors included."""
    expected_model, expected_optimizer = trained(1)
    model, optimizer = trained(2)
    state = load({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for key, value in expected_model.state_dict().items():
        assert model.state_dict()[key].equal(value), key
    got, wanted = optimizer.state_dict(), expected_optimizer.state_dict()
    assert got["param_groups"] == wanted["param_groups"]
    for index, slots in wanted["state"].items():
        for name, value in slots.items():
            assert got["state"][index][name].equal(value), (index, name)


def test_a_module_itself(folder: Path) -> None:
    """As PyTorch's documents do it: objects with state_dict and load_state_dict, of which some are asked for."""
    model = model_of(2)
    load({"model": model}, folder)
    assert model[0].weight.equal(trained(1)[0][0].weight)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_state_of_a_rank(folder: Path, rank: int) -> None:
    """What is each rank's own is rank 0's, or the chosen one's."""
    state: dict[str, Any] = {
        "mine": torch.zeros(3),
        "rank": None,
        "history": None,
        "array": None,
        "table": {0: torch.zeros(4, dtype=torch.int64), "0b": [torch.zeros(2), None]},
    }
    found = load({"state": state}, folder, rank)["state"]
    assert found["mine"].tolist() == [rank] * 3
    assert (found["rank"], found["history"]) == (rank, [(1, 2.5), b"x"])
    assert found["array"].tolist() == [rank, rank + 1, rank + 2]
    assert found["table"][0].tolist() == [rank, rank + 1, rank + 2, rank + 3]
    assert found["table"]["0b"][0].tolist() == [rank] * 2
    assert found["table"]["0b"][1] == 7


def test_by_its_path(folder: Path) -> None:
    """The path may also come with the call, as `checkpoint_id`."""
    reader = CheckpointStorageReader(folder)
    state = {"state": {"mine": torch.ones(3)}}
    dcp.load(state, storage_reader=reader, checkpoint_id=str(folder))
    assert state["state"]["mine"].tolist() == [0] * 3
    assert CheckpointStorageReader.validate_checkpoint_id(folder)
    assert not CheckpointStorageReader.validate_checkpoint_id(folder.parent)


def test_damage_is_an_error(folder: Path) -> None:
    """A flipped bit in what is read is told with the file's name; nothing is filled with it."""
    shard = folder / "shards" / "rank-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    model, optimizer = trained(2)
    before = model[0].weight.clone()
    with pytest.raises(dcp.CheckpointException, match=r"rank-00001\.safetensors of E0_U1_S0-0001 is damaged"):
        load({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder)
    assert model[0].weight.equal(before)


def test_what_was_never_committed_is_not_loaded(folder: Path) -> None:
    """Its reason is told."""
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointInvalid, match="never committed"):
        CheckpointStorageReader(folder).read_metadata()


def test_pickles_stay_unread(folder: Path) -> None:
    """An object that was tracked as pickled has no name here: reading it would run code."""
    assert not [name for name in CheckpointStorageReader(folder).read_metadata().state_dict_metadata if "env" in name]
    with pytest.raises(dcp.CheckpointException, match="Missing key in checkpoint state_dict: env"):
        load({"env": None}, folder)


def test_what_is_no_checkpoint(folder: Path) -> None:
    """Paths and ranks that can't be are refused, with an example."""
    with pytest.raises(UsageError, match=r"give its folder, e\.g\. runs/train/checkpoints"):
        CheckpointStorageReader(folder.parent.parent)
    with pytest.raises(UsageError, match="rank 2 is none of the 2"):
        CheckpointStorageReader(folder, rank=2).read_metadata()
