"""What `make demo` says where something is missing that can't be installed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tools import environment


def test_an_old_python_can_read_it() -> None:
    """The script that says that Python is too old has no syntax newer than 3.6."""
    ast.parse(Path(environment.__file__).read_text(), feature_version=(3, 6))
    assert "Python 3.10 or later, and this is 3.8.1" in str(environment.too_old((3, 8, 1)))
    assert environment.too_old((3, 10, 0)) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "GB free"),
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(...)'\n"
            "ERROR: No matching distribution found for torch",
            "is there a network?",
        ),
        ("ERROR: No matching distribution found for torch>=2.4", r"there is no torch>=2.4 for Python 3.*PYTHON="),
        ("Collecting x\n  ERROR: something else\n", "^something else$"),
        ("killed", "^killed$"),
    ],
)
def test_what_pip_could_not_do(tmp_path: Path, said: str, expected: str) -> None:
    """One line says what is missing, and what to do."""
    found = environment.explain(said, str(tmp_path))
    assert re.search(expected, found)
    assert "\n" not in found


def test_a_folder_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is downloaded."""
    monkeypatch.setattr(environment, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(environment.Missing, match="GB free; an environment with PyTorch takes 2 GB"):
        environment.check(str(tmp_path / "env"))


def test_a_python_without_venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's Python lacks it: the package's name is told."""
    monkeypatch.setitem(environment.sys.modules, "ensurepip", None)
    with pytest.raises(environment.Missing, match=r"ensurepip is missing.* apt install python3\.\d+-venv"):
        environment.check(str(tmp_path / "env"))


def test_progress() -> None:
    """Big downloads are shown, and nothing of the rest."""
    tell = environment.worth_telling
    assert tell("Downloading torch-2.13.0-cp311-none-linux_x86_64.whl (188.6 MB)") == "downloading torch (188.6 MB)"
    assert tell("  Downloading https://x/y/numpy-2.4.6-cp311.whl (18.1 MB)\n") == "downloading numpy (18.1 MB)"
    assert tell("  Downloading rich-15.0.0-py3-none-any.whl.metadata (19 kB)") is None
    assert tell("Installing collected packages: a, b, c") == "installing 3 packages"
    assert tell("Requirement already satisfied: numpy") is None
