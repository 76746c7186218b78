"""`tools/environment.py`: an environment is made, or one line says what is missing and what to do."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

from tests.packaging import closure

TOOL = Path(__file__).parents[2] / "tools" / "environment.py"
SETUP = 'from setuptools import Extension, setup\nsetup(name="built", version="1", ext_modules=[Extension("built", ["built.c"])])\n'
NOTHING_IS_THERE = {"PIP_IGNORE_INSTALLED": "1"}


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment_tool", TOOL)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An environment that has the running one's pip, and what a build without network needs."""
    made, links = tmp_path / "environment", tmp_path / "links"
    venv.create(made, symlinks=True)
    links.mkdir()
    closure.link([importlib.metadata.distribution(name) for name in ("numpy", "pip", "setuptools")], links)
    (packages,) = made.glob("lib/python*/site-packages")
    (packages / "links.pth").write_text(f"{links}\n")
    return made


def refused(folder: Path, *options: str, **variables: str) -> str:
    """The one line that says why there is no environment with an extra `test`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "HTTP", "http"))}
    done = subprocess.run(
        [sys.executable, str(TOOL), str(folder), "test", *options],
        env={**kept, "PIP_CONFIG_FILE": os.devnull, **variables},
        capture_output=True,
        text=True,
        cwd=folder.parent,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def test_any_python_can_read_it() -> None:
    """One that is too old says so, instead of naming a line that it does not understand."""
    ast.parse(TOOL.read_text(), feature_version=(3, 6))


def test_a_python_that_is_too_old(tool: ModuleType) -> None:
    """It says which one it is, and which is needed."""
    assert "needs Python 3.10 or later, and this is 3.9.18" in tool.too_old((3, 9, 18))
    assert tool.too_old((3, 10, 0)) is None


def test_a_python_without_venv(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Debian's Python comes without it: the package is named."""
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(tool.Missing, match=r"its module ensurepip is missing\. .*apt install python3\.\d+-venv"):
        tool.check(str(tmp_path / "new"))


def test_a_full_disk(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is told before anything is downloaded, with what is free and what is needed."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1_200_000_000))
    with pytest.raises(tool.Missing, match=r"has 1\.2 GB free; an environment with PyTorch takes \d GB"):
        tool.check(str(tmp_path / "new"))


def test_a_disk_that_fills_up(tool: ModuleType, tmp_path: Path) -> None:
    """What pip says then, last of all."""
    said = "Installing collected packages: torch\nERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    assert "GB free; an environment with PyTorch takes" in tool.explain(said, str(tmp_path))


def test_a_folder_that_is_not_ones_own(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that would have to be written to is named."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(tool.Missing, match=rf"{tmp_path} can't be written by you"):
        tool.check(str(tmp_path / "new"))


def test_no_network(folder: Path) -> None:
    """It is the index that can't be reached, not a package that does not exist; pip's own words are kept."""
    line = refused(folder, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1", **NOTHING_IS_THERE)
    assert "pip can't reach its package index" in line
    assert str(folder / "install.log") in line
    assert "127.0.0.1" in (folder / "install.log").read_text()


def test_a_package_that_is_not_there_for_this_python(folder: Path) -> None:
    """It is named, and so is the Python."""
    line = refused(folder, "--torch=torch==0.0.1", "--constraint=", PIP_NO_INDEX="1", **NOTHING_IS_THERE)
    assert "there is no torch==0.0.1 for Python {}.{} ".format(*sys.version_info[:2]) in line


def test_no_compiler(folder: Path) -> None:
    """A package without a wheel needs one: which to install, or what to do without."""
    source = folder.parent / "built"
    source.mkdir()
    (source / "setup.py").write_text(SETUP)
    (source / "built.c").write_text("int nothing;\n")
    isolated = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_DEPS": "1", "CC": "gcc"}
    line = refused(folder, f"--torch={source}", PATH=str(folder / "bin"), **isolated)
    assert "there is no compiler. On Debian and Ubuntu: apt install build-essential" in line


def test_an_environment_of_another_python_gives_way(tool: ModuleType, folder: Path) -> None:
    """One of this Python is used again, and nothing else is ever removed."""
    assert not tool.is_of_another_python(str(folder))
    assert not tool.is_of_another_python(str(folder.parent))
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.9.18\n")
    assert tool.is_of_another_python(str(folder))
