"""A run whose last save is still being copied when its loop ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests import warm

SCRIPT = """
import sys
import threading
import time

import torch

import autoresume
from autoresume.snapshot import copies

main, work, begun = threading.main_thread(), copies.Copying._work, threading.Event()


def held(copying):
    # In the background nothing is copied before the training's end.
    if threading.current_thread() is not main:
        begun.wait(5)
    work(copying)


copies.Copying._work = held
run = autoresume.start(save_every=5)
torch.manual_seed(0)
model = torch.nn.Linear(200, 200)
optimizer = torch.optim.AdamW(model.parameters())
run.track(model=model, optimizer=optimizer)


def step():
    optimizer.zero_grad()
    model(torch.randn(4, 200)).square().mean().backward()
    optimizer.step()


if sys.argv[1] == "run.steps":
    for _ in run.steps(5):
        step()
else:
    run.restore()
    while run.step_count < 5:
        step()
        run.step()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()
begun.set()
run.finish()
"""


@pytest.mark.parametrize(("loop", "zero"), [("run.steps", False), ("of one's own", True)])
def test_what_a_script_does_after_its_loop(loop: str, zero: bool, tmp_path: Path) -> None:
    """Where a loop of ours ends, its last save is completed before the script may load its best weights, say: what is
    stored is the state of the last step. Behind a loop of one's own nobody can know that; the snapshot is given up,
    and the state is saved as it is at the end, so that the run is finished all the same."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "AUTORESUME_RUN_DIR": str(tmp_path / "run")}
    done = warm.run([sys.executable, str(script), loop], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "is finished after step 5" in done.stderr
    assert ("is given up" in done.stderr) == zero
    (shard,) = (tmp_path / "run").glob("checkpoints/*_U5_*/shards/*")
    assert (not load_file(shard)["model/weight"].any()) == zero
