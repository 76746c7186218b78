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


WHOLE_EPOCHS = """
import torch
from torch.utils.data import DataLoader
from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    run.track()
    loader = DataLoader(torch.arange(8.0), batch_size=8, shuffle=True)
    for epoch in run.epochs(3):
        {inner}


main()
"""


@pytest.mark.parametrize(
    ("inner", "told"), [("for batch in loader: run.step()", False), ("for batch in [1]: run.step()", True)]
)
def test_an_epoch_of_one_step(tmp_path: Path, inner: str, told: bool) -> None:
    """A turn with one step is entered again after a resume: that is told, unless a loader knows that it has ended."""
    (tmp_path / "train.py").write_text(WHOLE_EPOCHS.format(inner=inner))
    done = warm.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert ("each turn of run.range ends with run.step()" in done.stderr) == told
