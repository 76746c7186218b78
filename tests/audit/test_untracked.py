"""What counts as the script's own."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import autoresume
from autoresume.audit import untracked


def test_what_is_installed_is_not_the_script_s() -> None:
    """Ours and what is installed are not; a folder whose name only begins like one of them is."""
    ours, installed = Path(autoresume.__file__).parent, Path(sysconfig.get_path("purelib"))
    assert not untracked._is_users(str(ours / "run.py"))
    assert not untracked._is_users(str(installed / "torch" / "nn.py"))
    assert not untracked._is_users("<string>")
    assert untracked._is_users(f"{ours}-experiments/train.py")
    assert untracked._is_users(str(Path.home() / "train.py"))
