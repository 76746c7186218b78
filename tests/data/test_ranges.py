"""Ranges whose turns are taken for steps."""

import os
import sys
from pathlib import Path

import pytest

from tests import warm

SCRIPT = """
from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    run.track()
    for epoch in run.range(3):
        for inner in range(2):
            {inner}


main()
"""


@pytest.mark.parametrize(("inner", "told"), [("pass", True), ("run.step()", False)])
def test_a_range_without_steps_is_told(tmp_path: Path, inner: str, told: bool) -> None:
    """A script that takes run.range for the loop of its steps would save nothing and could not be stopped."""
    (tmp_path / "train.py").write_text(SCRIPT.format(inner=inner))
    done = warm.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert ("run.step() was never called" in done.stderr) == told
