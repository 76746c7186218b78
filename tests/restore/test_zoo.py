"""Weights that others wrote, with the libraries that write them."""

from __future__ import annotations

import builtins
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from autoresume.errors import AutoresumeError, CheckpointInvalid, UsageError
from autoresume.restore.match_keys import match_keys
from autoresume.restore.weight_files import Weights, read_weights


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


STATE = net().state_dict()


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[key], STATE[key]) for key in STATE)


# -- what each library writes -------------------------------------------------------------------------


def plain(path: Path) -> None:
    torch.save(STATE, path)


def legacy(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


def whole_module(path: Path) -> None:
    torch.save(net(), path)


def nested(path: Path) -> None:
    optimizer = torch.optim.AdamW(net().parameters())
    torch.save(
        {"model_state_dict": STATE, "optimizer_state_dict": optimizer.state_dict(), "epoch": 3, "loss": 0.5}, path
    )


def mammoth(path: Path) -> None:
    from argparse import Namespace

    value = {
        "model": STATE,
        "optimizer": {},
        "scheduler": {},
        "args": Namespace(lr=0.1),
        "results": [[0.5], 1],
        "epoch": 3,
    }
    torch.save(value, path)


def safetensors(path: Path) -> None:
    save_file(STATE, path, metadata={"epoch": "3"})


def distributed(path: Path) -> None:
    dcp.save({"model": STATE, "epoch": 3}, checkpoint_id=str(path), no_dist=True)


def huggingface(path: Path) -> None:
    path.mkdir()
    keys = list(STATE)
    files = {"model-00001-of-00002.safetensors": keys[:3], "model-00002-of-00002.safetensors": keys[3:]}
    for file, inside in files.items():
        save_file({key: STATE[key] for key in inside}, path / file)
    where = {key: file for file, inside in files.items() for key in inside}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def huggingface_bin(path: Path) -> None:
    path.mkdir()
    torch.save(STATE, path / "pytorch_model.bin")


def lightning(path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 0.1, "path": Path("x")})
            self.net = net()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.net(batch[0]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.0)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(2, 3)), batch_size=2)
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    module = Module().eval()
    trainer.fit(module, data)
    module.net.load_state_dict(STATE)
    trainer.save_checkpoint(path)


ZOO = {
    plain: ("torch file", ""),
    legacy: ("torch file", ""),
    whole_module: ("torch file", ""),
    nested: ("torch file", ""),
    mammoth: ("torch file", ""),
    safetensors: ("safetensors file", ""),
    distributed: ("folder of torch.distributed.checkpoint", ""),
    huggingface: ("folder of Hugging Face", ""),
    huggingface_bin: ("torch file", ""),
}


@pytest.mark.filterwarnings("ignore:.*assuming the intent is to save.*")
@pytest.mark.parametrize("write", ZOO, ids=lambda write: write.__name__)
def test_what_others_write_is_read(write: Any, tmp_path: Path) -> None:
    """Each by its content, whatever its name; every tensor bit for bit."""
    path = tmp_path / "something.of.theirs"
    write(path)
    found = read_weights(path)
    kind, name = ZOO[write]
    assert found.kind == kind
    assert same(found.models[name])
    if write in (nested, mammoth):
        assert found.about["epoch"] == 3


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_lightning(tmp_path: Path) -> None:
    """With hyper-parameters and callbacks' state that only its own classes could read."""
    path = tmp_path / "epoch=0-step=1.ckpt"
    lightning(path)
    found = read_weights(path)
    assert found.kind == "checkpoint of Lightning"
    assert same({key.removeprefix("net."): value for key, value in found.models[""].items()})
    assert found.about["global_step"] == 1


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    """Nothing of it is run: neither in a torch file, nor in a bare pickle, nor in the metadata of a folder. The weights
    beside it are read all the same."""
    marker = tmp_path / "was-run"

    class Code:
        def __reduce__(self) -> Any:
            return (exec, (f"open({str(marker)!r}, 'w')",))

    torch.save({"state_dict": STATE, "extra": Code()}, tmp_path / "torch.pt")
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps({"state_dict": Code()}))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".metadata").write_bytes(pickle.dumps(Code()))
    assert same(read_weights(tmp_path / "torch.pt").models[""])
    for name in ("bare.pkl", "folder"):
        with pytest.raises(CheckpointInvalid):
            read_weights(tmp_path / name)
    assert not marker.exists()


def test_a_pickle_changes_nothing_that_is_there(tmp_path: Path) -> None:
    """A file that gives state to a class, or writes into a module of ours, is refused, and nothing has changed."""
    storage = "ctorch.storage\nUntypedStorage\n"
    (tmp_path / "class.pkl").write_bytes(f"\x80\x02{storage}(NN}}(X\x07\x00\x00\x00changedK\x01uNtb.".encode("latin1"))
    (tmp_path / "module.pkl").write_bytes(b"\x80\x02cnumpy.dtypes\n__builtins__\nX\x07\x00\x00\x00changedK\x01s.")
    for name in ("class.pkl", "module.pkl"):
        with pytest.raises(CheckpointInvalid):
            read_weights(tmp_path / name)
    assert not hasattr(torch.UntypedStorage, "changed")
    assert "changed" not in vars(builtins)


@pytest.mark.parametrize("write", [plain, legacy, safetensors], ids=lambda write: write.__name__)
@pytest.mark.parametrize("left", [0, 1, 20, 0.5, 0.99])
def test_a_truncated_file_is_called_damaged(write: Any, left: float, tmp_path: Path) -> None:
    """However little is left of it: a clear message, and never a traceback of somebody else's."""
    path = tmp_path / "file"
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data)) if isinstance(left, float) else left])
    with pytest.raises(AutoresumeError, match=r"damaged|empty|no file of weights"):
        read_weights(path)


def test_what_is_no_checkpoint_is_called_so(tmp_path: Path) -> None:
    """A text, a missing file, a folder of something else, an index whose file is missing or lies elsewhere."""
    (tmp_path / "text").write_text("hello, this is a text")
    (tmp_path / "other").mkdir()
    huggingface(tmp_path / "index")
    (tmp_path / "index" / "model-00002-of-00002.safetensors").unlink()
    for name, said in (("text", "no file of weights"), ("gone", "there is no file"), ("other", "no checkpoint")):
        with pytest.raises(UsageError, match=said):
            read_weights(tmp_path / name)
    with pytest.raises(CheckpointInvalid, match="lacks model-00002"):
        read_weights(tmp_path / "index")
    (tmp_path / "index" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    with pytest.raises(CheckpointInvalid, match="elsewhere"):
        read_weights(tmp_path / "index")


# -- which key is whose -------------------------------------------------------------------------------

LIVE = {"body.weight": (4, 3), "body.bias": (4,), "head.weight": (2, 4)}


def named(change: Any) -> dict[str, tuple[int, ...]]:
    return {change(key): shape for key, shape in LIVE.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda key: f"module.{key}",
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: key.replace("body.", "body._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda key: f"model.{key}",
        lambda key: f"student.net.{key}",
    ],
)
def test_prefixes_come_off(change: Any) -> None:
    """Those of wrappers wherever they are, and one that everything has."""
    found = match_keys(named(change), LIVE)
    assert found.pairs == {change(key): key for key in LIVE}
    assert found.missing == found.unused == found.misfits == ()


def test_a_backbone_of_somebody_else() -> None:
    """A plain backbone, from under DataParallel, into a model that has it under a name of its own: the prefix is put on,
    and said; the head that it lacks is missing, unless it is to stay as it is."""
    stored = {"module.weight": (4, 3), "module.bias": (4,)}
    found = match_keys(stored, LIVE)
    assert found.pairs == {"module.weight": "body.weight", "module.bias": "body.bias"}
    assert found.missing == ("head.weight",)
    assert "were given the prefix 'body.'" in found.notes[0]
    assert match_keys(stored, LIVE, fresh=["head.*"]).missing == ()


def test_an_averaged_model() -> None:
    """Its counter is no weight."""
    found = match_keys({"n_averaged": (), **named(lambda key: f"module.{key}")}, LIVE)
    assert len(found.pairs) == 3
    assert found.unused == ()


def test_renamed_removed_and_kept() -> None:
    """Regular expressions of stored keys, patterns of live ones; shapes that differ are told with both."""
    stored = {"encoder.weight": (4, 3), "encoder.bias": (4,), "head.weight": (9, 4), "extra": (1,)}
    found = match_keys(stored, LIVE, {"^encoder": "body"}, ["^extra$"])
    assert found.misfits == (("head.weight", (9, 4), (2, 4)),)
    assert match_keys(stored, LIVE, {"^encoder": "body"}, ["^extra$"], ["head.*"]).misfits == ()
    assert match_keys(stored, LIVE, {}, ["encoder"]).missing == ("body.weight", "body.bias")


names = st.lists(st.sampled_from(["a", "b", "module", "_orig_mod", "w"]), min_size=1, max_size=4).map(".".join)
keys = st.dictionaries(names, st.just((1,)), max_size=6)


@settings(max_examples=200)
@given(keys, keys)
def test_every_key_is_accounted_for(stored: dict[str, Any], live: dict[str, Any]) -> None:
    """Each live key is matched, missing or a misfit; no key is used twice; equal keys find each other."""
    found = match_keys(stored, live)
    assert set(found.pairs) <= set(stored)
    assert len(set(found.pairs.values())) == len(found.pairs)
    assert set(found.pairs.values()) | set(found.missing) <= set(live)
    if stored == live and len({key.replace("_orig_mod.", "") for key in live}) == len(live):
        assert len(found.pairs) == len({*map(str, found.pairs.values())})


def test_weights_are_a_value() -> None:
    """What was found has its kind and its models."""
    assert Weights("x", {"": {}}).about == {}
