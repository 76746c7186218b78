"""`load_state_dict` is the judge: what torch would take is taken, though it has another form before it is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autoresume.errors import StateError
from autoresume.load.load_state import load_state
from autoresume.state.capture import capture
from autoresume.state.decode import decode
from autoresume.state.in_place import in_place_targets


def stored(value: Any) -> Any:
    """Its state as a checkpoint gives it back."""
    captured = capture({"it": value}, frozenset(), frozenset())
    tensors = {leaf.key: leaf.tensor.clone().contiguous() for leaf in captured.leaves}
    return decode(captured.tree, tensors)["it"]


class Growing(nn.Module):
    """A buffer that grows, and that is made as large as what is loaded; `bias` is torch's to load."""

    def __init__(self, rows: int = 0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.arange(float(rows)))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        self.seen = torch.empty_like(state[f"{prefix}seen"])
        super()._load_from_state_dict(state, prefix, *rest)


class Extra(nn.Linear):
    def __init__(self, history: list[float]) -> None:
        super().__init__(2, 2)
        self.history = history

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.history)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.history = state.tolist()


class Renamed(nn.Module):
    """Reads the names of an older version of itself, by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_load_state_dict_pre_hook(self._read_older)

    @staticmethod
    def _read_older(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if f"{prefix}w" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}w")


def test_a_buffer_that_grows() -> None:
    """Its own loading makes it as large; what beside it torch loads is still compared before anything is changed."""
    target = nn.Sequential(nn.Linear(2, 2), Growing())
    load_state("model", target, stored(nn.Sequential(nn.Linear(2, 2), Growing(5))))
    assert target[1].seen.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(StateError, match=r"0\.weight has shape \(3, 2\)"):
        load_state("model", target, stored(nn.Sequential(nn.Linear(2, 3), Growing(5))))


def test_extra_state_that_grows() -> None:
    """As FP8 layers have it: a tensor of another size, or none yet."""
    target = Extra([])
    load_state("model", target, stored(Extra([1.0, 2.0])))
    assert target.history == [1.0, 2.0]


def test_names_of_an_older_version() -> None:
    """A hook that reads them is asked before names are compared."""
    target = nn.ModuleDict({"a": Renamed()})
    load_state("model", target, {"a.w": torch.ones(3)})
    assert target["a"].weight.tolist() == [1, 1, 1]


def test_an_observer() -> None:
    """torch's own that changes its shape when it is loaded."""
    observer = torch.ao.quantization.PerChannelMinMaxObserver()
    observer(torch.randn(5, 3))
    target = torch.ao.quantization.PerChannelMinMaxObserver()
    load_state("observer", target, stored(observer))
    assert torch.equal(target.min_val, observer.min_val)


@pytest.mark.parametrize("dry", [False, True])
def test_lazy_layers(dry: bool) -> None:
    """They take their sizes from what they load, or have taken them from a batch; so do their optimizer's states."""

    def made(initialised: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
        if initialised:
            model(torch.randn(3, 2))
        return model, torch.optim.Adam(model.parameters())

    model, optimizer = made(True)
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    other, others = made(dry)
    load_state("model", other, stored(model))
    load_state("optimizer", others, stored(optimizer))
    for one, another in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(one, another)
    assert [v["exp_avg"].shape for v in others.state.values()] == [v["exp_avg"].shape for v in optimizer.state.values()]
    other(torch.randn(3, 2))


def test_a_lazy_layer_without_a_batch_is_named() -> None:
    """It has nothing to store: refused by its name."""
    with pytest.raises(StateError, match=r"it/0\.weight.*lazy"):
        stored(nn.Sequential(nn.LazyLinear(4)))


@pytest.mark.parametrize(("was", "now"), [(True, False), (False, True), (True, True)])
def test_parts_that_are_compiled(was: bool, now: bool) -> None:
    """Their names are those of the parts themselves, whichever life compiles them; also in checkpoints with torch's names."""

    def made(compiled: bool) -> nn.ModuleDict:
        parts = {name: nn.Linear(2, 2) for name in "ab"}
        return nn.ModuleDict({k: torch.compile(v, backend="eager") if compiled else v for k, v in parts.items()})

    model, target = made(was), made(now)
    state = stored(model)
    assert list(state) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    load_state("model", target, state)
    for one, other in zip(model.parameters(), target.parameters()):
        assert torch.equal(one, other)
    load_state("model", target, model.state_dict())
    assert set(in_place_targets({"it": target}, {}, lambda key: None)) == set()  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("kind", ["expand", "as_strided", "broadcast"])
def test_expanded_memory(kind: str) -> None:
    """A buffer whose elements share memory gets its values back, and stays what it is."""

    class Net(nn.Module):
        def __init__(self, begin: float) -> None:
            super().__init__()
            row = torch.linspace(begin, 1, 4)
            made = {
                "expand": row.expand(3, -1),
                "as_strided": row.as_strided((3, 4), (0, 1)),
                "broadcast": torch.broadcast_to(row[:, None], (4, 2)),
            }
            self.register_buffer("where", made[kind])
            self.weight = nn.Parameter(torch.full((2,), begin))

    model, target = Net(0.0), Net(0.5)
    strides = target.where.stride()
    load_state("model", target, stored(model))
    assert torch.equal(target.where, model.where)
    assert target.where.stride() == strides
    assert target.weight.tolist() == [0, 0]


class InNameOnly(torch.optim.Optimizer):
    """An Optimizer that never calls its __init__, and passes all on, as accelerate's does."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)  # type: ignore[assignment]
    param_groups = property(lambda self: self.optimizer.param_groups)  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def test_an_optimizer_in_name_only() -> None:
    """It is saved and restored through what it passes on to, and its tensors are found in place or not: no traceback."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = InNameOnly(torch.optim.Adam([weight]))
    weight.grad = torch.ones(3)
    optimizer.optimizer.step()
    other = InNameOnly(torch.optim.Adam([nn.Parameter(torch.zeros(3))]))
    state = stored(optimizer)
    assert in_place_targets({"it": other}, {"it": {}}, lambda key: None) == {}  # type: ignore[arg-type, return-value]
    load_state("optimizer", other, state)
    (one,), (another,) = optimizer.state.values(), other.state.values()
    assert torch.equal(one["exp_avg"], another["exp_avg"])
