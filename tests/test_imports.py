"""Imports: the command line and the daemon never load torch, and are quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import autoresume

PACKAGE = Path(autoresume.__file__).parent
LIGHT = ["autoresume", "autoresume.cli", "autoresume.node.daemon", "autoresume.config.options"] + [
    f"autoresume.cli.{path.stem}" for path in sorted((PACKAGE / "cli").glob("[!_]*.py"))
]
HEAVY = {"torch", "numpy", "torchvision", "tensorboard", "wandb", "mlflow", "pandas"}
LOOK = "import json, sys, importlib; importlib.import_module(sys.argv[1]); print(json.dumps(sorted(sys.modules)))"


def modules(name: str) -> set[str]:
    """What is loaded in a fresh process after `import name`."""
    done = subprocess.run([sys.executable, "-c", LOOK, name], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", LIGHT)
def test_torch_is_not_imported(name: str) -> None:
    """Neither torch nor anything else that is heavy comes along; the daemon has its node to itself in no time."""
    assert not modules(name) & HEAVY


def test_every_command_is_looked_at() -> None:
    """The list above holds every command."""
    from autoresume.cli import _COMMANDS

    assert {f"autoresume.cli.{name}" for name in _COMMANDS} <= set(LIGHT)


def test_importing_the_package_costs_nothing() -> None:
    """`import autoresume` loads itself, and nothing third-party."""
    loaded = modules("autoresume")
    ours = {name for name in loaded if name.partition(".")[0] == "autoresume"}
    assert ours == {"autoresume"}
    assert not {"click", "rich", "psutil", "yaml", "xxhash"} & loaded


def test_importing_the_daemon_loads_nothing_heavy() -> None:
    """It stands on each node before the ranks do: what takes long to import, and what only logging in needs, is not there."""
    assert not {"torch", "numpy", "submitit", "rich", "asyncio"} & {
        name.partition(".")[0] for name in modules("autoresume.cli.node")
    }


@pytest.mark.parametrize("name", [*autoresume.__all__, "__version__"])
def test_every_public_name_is_there(name: str) -> None:
    """What `__all__` promises is found; `dir` does not need torch to tell it."""
    assert getattr(autoresume, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As with any module, naming the attribute."""
    with pytest.raises(AttributeError, match="no attribute 'resume'"):
        autoresume.resume
