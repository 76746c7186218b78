"""How a training comes to its end: what its last checkpoint holds, and what is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from autoresume import autoresume


def train(folder: Path, keep: str) -> torch.nn.Linear:
    """Three updates, the last one behind the last boundary; `keep` says when run.state is set."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    @autoresume(run_dir=str(folder), save_every=100)
    def main(run: Any) -> None:
        run.track(model=model, optimizer=optimizer)
        run.restore()
        for number in range(3):
            model(torch.ones(1, 1)).sum().backward()
            optimizer.step()
            if keep == "before":
                run.state.number = number
            if number == 2:
                break
            if keep == "after":
                run.state.number = number
            run.step()

    main()
    return model


@pytest.mark.parametrize("keep", ["before", "after", "never"])
def test_an_update_behind_the_last_boundary_counts(keep: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last state is never called that of the step before: the update is a step of its own. What the script keeps in
    run.state was perhaps not brought up to it: that is told, unless it was."""
    with caplog.at_level(logging.WARNING):
        train(tmp_path, keep)
    assert [path.name.split("_")[1] for path in tmp_path.glob("checkpoints/*")] == ["U3"]
    assert ("behind the last step boundary" in caplog.text) == (keep == "after")
