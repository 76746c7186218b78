"""A script that wraps its model for several ranks, started with one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import warm

SCRIPT = """
import os
import weakref
from pathlib import Path
import torch
from autoresume import Run, autoresume

@autoresume(backend="gloo", save_every=3)
def main(run: Run) -> None:
    run.seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run.track(model=model, optimizer=optimizer)
    for _ in run.steps(4):
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    weakref.finalize(model, look)

def look():
    (record,) = Path(os.environ["AUTORESUME_RUN_DIR"]).glob("incarnations/*.json")
    print("freed when the run was over:", '"finished"' in record.read_text())

main()
"""
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]


@pytest.mark.parametrize("launcher", [[], TORCHRUN], ids=["python", "torchrun"])
def test_ddp_with_one_rank(launcher: list[str], tmp_path: Path) -> None:
    """`backend` replaces the script's own init_process_group also for one rank: on a laptop, without any launcher, too.
    The wrapper is not freed where the script's function returns, right after its last backward pass, but when the run
    is over: torch 2.13's gloo may hang or abort there."""
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "AUTORESUME_RUN_DIR": str(tmp_path / "run")}
    command = [sys.executable, *launcher, str(tmp_path / "train.py")]
    done = warm.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "is finished after step 4" in done.stderr
    assert done.stdout == "freed when the run was over: True\n"
