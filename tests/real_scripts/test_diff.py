"""autoresume diff, on real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from autoresume.cli import cli
from autoresume.restore.diff import compare
from tests.real_scripts.harness import Place


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Place(tmp_path_factory.mktemp("base"))
    assert place.run("modes.py").code == 0
    return place.run_folder


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, ["diff", *map(str, words)])


def rows(*words: object) -> dict[str, dict[str, object]]:
    done = call(*words, "--json")
    assert done.exit_code == 1, done.output
    return {row["name"]: row for row in map(json.loads, done.output.splitlines())}


def test_a_checkpoint_is_equal_to_itself(run: Path) -> None:
    """Exit code 0, and the number of values that were compared."""
    done = call(run, f"{run}@U16")
    assert done.exit_code == 0, done.output
    assert "0 differ" in done.output
    assert call(run, run, "--json").output == ""


def test_what_training_changes_is_named(run: Path) -> None:
    """Weights and generators by name, with how many elements differ and by how much; what didn't change is not there."""
    found = rows(f"{run}@U8", f"{run}@U12")
    assert found["model/head.weight"]["elements"] == found["model/head.weight"]["of"] == 10
    assert 0 < float(str(found["model/head.weight"]["absolute"])) < 1
    assert found["run/step"]["a"], found["run/step"]["b"] == ("8", "12")
    assert "generator/state" in " ".join(found) or any(name.startswith("generator") for name in found)
    assert "run/rng/python" not in found
    assert set(rows(f"{run}@U8", f"{run}@U12", "--only", "model/")) < set(found)
    text = call(f"{run}@U8", f"{run}@U12")
    assert "elements" in text.output


def test_a_file_of_others_is_compared_by_its_keys(run: Path, tmp_path: Path) -> None:
    """What only one of them has is told."""
    torch.save({"w": torch.zeros(2)}, tmp_path / "a.pt")
    torch.save({"w": torch.zeros(3), "b": torch.ones(1)}, tmp_path / "b.pt")
    found = rows(tmp_path / "a.pt", tmp_path / "b.pt")
    assert (found["w"]["what"], found["w"]["a"], found["w"]["b"]) == ("shape", "[2]", "[3]")
    assert found["b"]["what"] == "only in B"


def test_values_are_compared_as_they_are() -> None:
    """NaN is NaN, 0 and -0 are equal, a dtype is a difference, and so is a type."""
    nan = float("nan")
    assert compare({"a": torch.tensor([nan, 0.0])}, {"a": torch.tensor([nan, -0.0])}) == []
    assert compare({"a": nan, "b": [1, 2]}, {"a": nan, "b": [1, 2]}) == []
    assert [one.what for one in compare({"a": torch.ones(1)}, {"a": torch.ones(1).double()})] == ["dtype"]
    assert [one.what for one in compare({"a": 1, "c": "x"}, {"a": 1.0, "c": "y"})] == ["value", "value"]
