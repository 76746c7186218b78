"""The versions that are promised, and those that are tried, are the same; what was not tried is said."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import torch
import yaml

from tests.packaging import closure

REPOSITORY = Path(__file__).parents[2]
PROJECT = REPOSITORY / "pyproject.toml"
EXTRAS_OF_CORE = {"cloudpickle", "tensorboard", "torchdata"}


def pinned(name: str) -> dict[str, str]:
    lines = (REPOSITORY / name).read_text().splitlines()
    return dict(line.lower().partition(";")[0].strip().split("==") for line in lines if not line.startswith("#"))


def test_the_oldest_versions_are_the_bounds() -> None:
    """constraints-oldest.txt holds each lower bound of pyproject.toml, with the core's extras, and nothing else."""
    bounds = dict(re.findall(r'^\s+"([\w-]+)>=([\d.]+)"', PROJECT.read_text(), re.MULTILINE))
    extras = dict(re.findall(r'= \["([\w-]+)>=([\d.]+)"\]', PROJECT.read_text()))
    oldest = pinned("constraints-oldest.txt")
    declared = {re.match(r"[\w-]+", line)[0] for line in closure.declared(PROJECT)}  # type: ignore[index]
    assert set(oldest) == declared | EXTRAS_OF_CORE
    for name, version in oldest.items():
        bound = {**bounds, **extras}[name]
        assert version == bound + ".0" * (version.count(".") - bound.count(".")), name


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("versions_tool", REPOSITORY / "tools" / "versions.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_core_is_there(tool: ModuleType) -> None:
    """A file that was moved is not left out silently."""
    for words in tool.CORE:
        assert (REPOSITORY / words.removeprefix("--ignore=")).exists()


def test_the_ends_of_what_is_promised_are_tried(tool: ModuleType) -> None:
    """The oldest Python, the newest one of the classifiers, and both ends of torch; the workflow tries them, too."""
    pythons = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT.read_text())
    assert list(tool.PROMISED) == [f"oldest-{pythons[0]}", f"newest-{pythons[-1]}"]
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    assert set(tool.PROMISED) <= {one["version"] for one in workflow["jobs"]["core"]["strategy"]["matrix"]["include"]}


def test_what_was_not_tried_is_said(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without other environments the running versions are told, and of each promised one that it was not tried; nothing is
    made. One that is asked for and can't be had is told with the reason, and fails in CI."""
    monkeypatch.setattr(tool, "REPOSITORY", tmp_path)
    assert tool.main([]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    running = f"torch {torch.__version__}, numpy {numpy.__version__}, Python {sys.version.split()[0]}"
    assert first == f"versions: the whole suite with {running}: passed"
    assert [re.sub(r" \(.*", "", line) for line in others] == [
        f"versions: the core with {name}: not tried here" for name in tool.PROMISED
    ]
    assert not list(tmp_path.iterdir())

    monkeypatch.setenv("CI", "true")
    assert tool.main(["newest-3.99"]) == 1
    assert "newest-3.99: skipped: there is no python3.99" in capsys.readouterr().out
