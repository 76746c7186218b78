"""What can't be put back is refused after the first step, and not at the resume, when it costs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from autoresume.errors import StateError
from autoresume.state import rng
from autoresume.state.trial import try_states


class Counter:
    """`how` it takes its state back."""

    def __init__(self, how: str) -> None:
        self.how, self.count, self.mean = how, 3, torch.tensor([1.0, float("nan")])

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.how == "not at all":
            raise KeyError("version")
        self.count = state["count"] + (self.how == "more")
        self.mean = state["mean"] * (2 if self.how == "twice" else 1)
        torch.rand(3)


class History(nn.Linear):
    """Its extra state grows; a `broken` one reads another form than it writes."""

    broken = False

    def get_extra_state(self) -> torch.Tensor:
        return torch.arange(5.0)

    def set_extra_state(self, state: torch.Tensor) -> None:
        if self.broken:
            raise RuntimeError(f"expected 3 values, got {len(state)}")


def test_an_object_that_takes_back_what_it_gives(caplog: pytest.LogCaptureFixture) -> None:
    """No word; and neither it nor a generator is touched by the trial."""
    counter, model = Counter("rightly"), nn.Sequential(History(2, 2), nn.BatchNorm1d(2))
    before = rng.rng_digests()
    try_states({"counter": counter, "model": model})
    assert (counter.count, rng.rng_digests()) == (3, before)
    assert not caplog.records


def test_one_that_does_not(caplog: pytest.LogCaptureFixture) -> None:
    """Refused by its name, with what it said and what to do."""
    with pytest.raises(StateError, match=r"'counter' does not take back .* KeyError: 'version'.*pickled\(counter\)"):
        try_states({"counter": Counter("not at all")})
    model = nn.Sequential(nn.Linear(2, 2), History(2, 2))
    model[1].broken = True
    with pytest.raises(StateError, match=r"'model.1' does not take back .* expected 3 values, got 5"):
        try_states({"model": model})


@pytest.mark.parametrize(("how", "what"), [("more", "no tensors differ"), ("twice", "mean has other values")])
def test_one_that_is_another_then(how: str, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """Told: training goes on, and whoever reads it knows what a resume would change."""
    try_states({"counter": Counter(how)})
    assert what in caplog.text
    assert "exact inverses" in caplog.text


def test_what_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    """Torch's own, what can't be copied, and what is large: nothing is done to them."""
    locked, large = Counter("not at all"), Counter("not at all")
    locked.lock = threading.Lock()  # type: ignore[attr-defined]
    large.buffer = torch.empty(9_000_000)  # type: ignore[attr-defined]
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    try_states({"locked": locked, "large": large, "optimizer": optimizer, "scheduler": scheduler})
    assert not caplog.records
