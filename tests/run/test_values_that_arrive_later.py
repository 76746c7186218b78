"""Promises of `run.log` where a device is still computing what is logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoresume import Run, start
from autoresume.snapshot.pending_number import PendingNumber


class Coming(PendingNumber):
    """A number of a device that computes it when it is told to, or waited for."""

    def __init__(self, number: float) -> None:
        self.number, self.there, self.waited = number, False, False

    def is_ready(self) -> bool:
        return self.there

    def value(self) -> float:
        self.waited = not self.there
        if self.number < 0:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return self.number


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    original = PendingNumber.of
    monkeypatch.setattr(PendingNumber, "of", lambda value: value if isinstance(value, Coming) else original(value))
    made = start(run_dir=str(tmp_path), save_every=4, loggers=["csv"])
    made.restore()
    return made


def steps(folder: Path) -> list[tuple[int, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["values"]) for record in map(json.loads, lines)]


def test_what_is_logged_keeps_its_order_and_its_step(run: Run, tmp_path: Path) -> None:
    """Nothing waits until a save: then all values are waited for, and are written in the order in which they were logged,
    each with its step; and what has arrived is written at the next boundary."""
    first, second = Coming(1.5), Coming(2.5)
    run.log(loss=first, lr=0.1)
    run.log(note="between")
    run.step()
    run.log(loss=second)
    assert not first.waited
    first.there = True
    run.step()
    run.life.metrics._journal.flush()  # type: ignore[union-attr]
    expected: list[tuple[int, Any]] = [(1, {"loss": 1.5, "lr": 0.1}), (1, {"note": "between"})]
    assert steps(tmp_path) == expected
    run.step()
    assert not second.waited
    run.step()  # saves
    assert second.waited
    expected.append((2, {"loss": 2.5}))
    assert steps(tmp_path) == expected
    run.finish()
    assert (tmp_path / "metrics.csv").exists()


def test_what_is_no_number_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    """A mistake is told where it is made, also while others wait; and nothing of that call is written."""
    run.log(loss=Coming(1.0))
    with pytest.raises(TypeError, match="one element"):
        run.log(loss=Coming(2.0), shape=[1, 2])
    run.step()
    run.finish()
    assert steps(tmp_path) == [(1, {"loss": 1.0})]


def test_a_device_that_fails_takes_only_its_numbers(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When a CUDA error has ended the training, what was logged before it is written all the same, and the error that is seen
    is the training's."""
    run.log(loss=0.5)
    run.log(loss=Coming(-1.0))
    run.close("ended", "the device has failed")
    assert steps(tmp_path) == [(1, {"loss": 0.5})]
    assert "1 calls of run.log are lost with the device" in caplog.text
