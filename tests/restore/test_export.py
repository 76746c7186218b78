"""Weights in and out: imported as a run, exported in forms that others open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import autoresume
from autoresume.cli import cli
from autoresume.errors import AutoresumeError, UsageError
from autoresume.restore.export import file_name
from autoresume.restore.weight_files import read_weights

STATE = {f"layer{index}.weight": torch.full((100, 10), float(index)) for index in range(4)}


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def said(*words: object) -> str:
    """What a command says that can't be done."""
    error = call(*words).exception
    assert isinstance(error, AutoresumeError), error
    return str(error)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was made of a file."""
    save_file(STATE, tmp_path / "theirs.safetensors")
    done = call("import", tmp_path / "theirs.safetensors", "--to", tmp_path / "run", "--model", "net")
    assert done.exit_code == 0, done.output
    assert "net (4 tensors), from a safetensors file" in done.output
    return tmp_path / "run"


def equal(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[key], STATE[key]) for key in STATE)


def test_an_imported_model_is_a_checkpoint_like_any_other(run: Path, tmp_path: Path) -> None:
    """It is listed, verified, and loaded by name; a directory that holds something is not touched."""
    (row,) = [json.loads(line) for line in call("ls", run, "--json").output.splitlines()]
    assert (row["step"], row["valid"]) == (0, True)
    assert call("verify", run).exit_code == 0
    assert equal(autoresume.load_model_state(run))
    assert "is not empty" in said("import", tmp_path / "theirs.safetensors", "--to", run)


@pytest.mark.filterwarnings("ignore:.*assuming the intent is to.*")
@pytest.mark.parametrize("form", ["safetensors", "torch", "dcp", "huggingface"])
def test_what_is_exported_is_opened_by_others(form: str, run: Path, tmp_path: Path) -> None:
    """By the plain libraries, and by us again; with where it came from, and never over something that is there."""
    target = tmp_path / "out"
    done = call("export", run, "--format", form, "--to", target, "--max-shard-size", "9KB")
    assert done.exit_code == 0, done.output
    if form == "safetensors":
        found = load_file(target)
        with safe_open(target, "pt") as file:
            assert file.metadata()["step"] == "0"
    elif form == "torch":
        found = torch.load(target, weights_only=True)
    elif form == "dcp":
        found = {key: torch.empty_like(value) for key, value in STATE.items()}
        dcp.load(found, checkpoint_id=str(target), no_dist=True)
    else:
        index = json.loads((target / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) == 2
        found = {key: load_file(target / file)[key] for key, file in index["weight_map"].items()}
    assert equal(found)
    assert equal(autoresume.load_model_state(target))
    assert "is there already" in said("export", run, "--format", form, "--to", target)
    assert call("export", run, "--format", form, "--to", target, "--force").exit_code == 0
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{model}_{info}_cp={checkpoint}_model.th", "net_cp=latest_model.th"),
        ("epoch={epoch:02d}-step={step:04d}.ckpt", "epoch=00-step=0000.ckpt"),
        ("[{name}]{model}_{dataset}_{buffer}_{n_epochs}_{task}.pt", "[mine]net_cifar_0_5_2.pt"),
    ],
)
def test_names_by_template(template: str, name: str, run: Path, tmp_path: Path) -> None:
    """As others name their files; fields that nobody knows are listed."""
    words = ("export", run, "--format", "torch", "--to", tmp_path, "--name", template)
    fields = ("name=mine", "dataset=cifar", "buffer=0", "n_epochs=5", "task=2")
    done = call(*words, *(word for field in fields for word in ("--field", field)))
    assert done.exit_code == 0, done.output
    assert (tmp_path / name).exists()
    with pytest.raises(UsageError, match=r"field 'data', which nothing fills; there are .*timestamp"):
        file_name("{data}", {})


def test_a_model_for_a_device(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto is the accelerator, if there is one, else the CPU; the run in the working directory is the default."""
    monkeypatch.chdir(run)
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert {tensor.device.type for tensor in autoresume.load_model_state(device="auto").values()} == {expected.type}
    assert {tensor.device.type for tensor in autoresume.load_model_state(device="meta").values()} == {"meta"}


def test_several_models_are_told_apart(tmp_path: Path) -> None:
    """Which one is asked, with their names."""
    torch.save({"generator": STATE, "critic": {"w": torch.ones(1)}}, tmp_path / "gan.pt")
    assert list(read_weights(tmp_path / "gan.pt").models) == ["generator", "critic"]
    with pytest.raises(UsageError, match="several models: generator, critic"):
        autoresume.load_model_state(tmp_path / "gan.pt")
    assert equal(autoresume.load_model_state(tmp_path / "gan.pt", model="generator"))
    assert "there is no model 'x'" in said("export", tmp_path / "gan.pt", "--model", "x")
