"""Promises of reading a state again: what comes out is what reading it for the first time gives."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresume.errors import StateError
from autoresume.format.digest import canonical
from autoresume.snapshot.recapture import Recapture
from autoresume.state.capture import capture
from autoresume.state.pickled import pickled

NOTHING: frozenset[Any] = frozenset()


class Stateful:
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def assert_as_captured(again: Recapture, objects: dict[str, Any], known: frozenset[int] = NOTHING) -> bool:
    """The same tree, and the same memory in the same order; whether the form was the last one's."""
    taken = again.capture(objects, known, NOTHING)
    fresh = capture(objects, known, NOTHING)
    assert taken.tree == canonical(fresh.tree)
    assert len(taken.tensors) == len(fresh.leaves)
    for found, leaf in zip(taken.tensors, fresh.leaves):
        expected = leaf.tensor
        assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
        # A number of numpy's has no memory of its own that would be there again.
        assert found.data_ptr() == expected.data_ptr() or (not found.dim() and torch.equal(found, expected))
    assert taken.attachments == fresh.attachments
    return taken.leaves is None


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    step(model, optimizer, scheduler)
    return model, optimizer, scheduler


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scheduler.step()


def test_a_training_keeps_its_form() -> None:
    """From step to step only values change, and those are the ones of now: learning rates, counters, lists."""
    model, optimizer, scheduler = trained()
    numbers = Stateful({"losses": [0.5], "best": (1, 2.0), "seen": {1, 2}, "last": deque([1], maxlen=3)})
    objects = {"numbers": numbers, "model": model, "optimizer": optimizer, "scheduler": scheduler}
    again = Recapture()
    assert not assert_as_captured(again, objects)
    for turn in range(4):
        step(model, optimizer, scheduler)
        numbers.state["losses"][0] = -0.0 if turn % 2 else 0.0
        numbers.state["seen"].add(turn + 7)
        numbers.state["last"].append(turn)
        assert assert_as_captured(again, objects)


def _frozen(objects: dict[str, Any]) -> None:
    objects["model"][0].weight.data = objects["model"][0].weight.data.clone()


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "other memory": _frozen,
    "another dtype": lambda objects: objects["model"].double(),
    "another shape of the same memory": lambda objects: objects["plain"].state.update(
        w=objects["plain"].state["w"].view(3, 2)
    ),
    "other strides of the same memory": lambda objects: objects["plain"].state.update(
        w=objects["plain"].state["w"].as_strided((2, 3), (1, 2))
    ),
    "a key more": lambda objects: objects["plain"].state.update(more=1),
    "another order of keys": lambda objects: objects["plain"].state.update(n=objects["plain"].state.pop("n")),
    "True for 1": lambda objects: objects["plain"].state.update(n=True),
    "a tensor for a number": lambda objects: objects["plain"].state.update(n=torch.ones(2)),
    "an array for a number": lambda objects: objects["plain"].state.update(n=np.ones(2)),
    "an array inside of a deque": lambda objects: objects["plain"].state["line"].append(np.ones(2)),
    "a tensor inside of a deque": lambda objects: objects["plain"].state["line"].append(torch.ones(2)),
    "a number for a tensor": lambda objects: objects["plain"].state.update(w=7),
    "True for the key 1": lambda objects: objects["plain"].state.update(keys={True: "x"}),
    "an OrderedDict for a dict": lambda objects: objects["plain"].state.update(keys=OrderedDict({1: "x"})),
    "memory of another object": lambda objects: objects["plain"].state.update(w=objects["model"][0].weight.detach()),
    "a tied weight": lambda objects: setattr(objects["model"][4], "weight", objects["model"][0].weight),
    "an object more": lambda objects: objects.update(another=Stateful({"x": torch.ones(1)})),
    "one object less": lambda objects: objects.pop("plain"),
    "objects in another order": lambda objects: objects.update(model=objects.pop("model")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_form_is_read_anew(what: str) -> None:
    """Whatever changes in a state's structure is found out, once, and remembered from then on."""
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(5)))
    plain = Stateful({"n": 1, "w": torch.ones(2, 3), "line": deque([1]), "keys": {1: "x"}})
    objects: dict[str, Any] = {"model": model, "plain": plain}
    again = Recapture()
    assert not assert_as_captured(again, objects)
    assert assert_as_captured(again, objects)
    CHANGES[what](objects)
    assert not assert_as_captured(again, objects)
    assert_as_captured(again, objects)


def test_states_that_are_read_anew_each_time() -> None:
    """Arrays, generators, pickles and shared memory come out as ever, between objects that are remembered."""
    shared = torch.ones(3)
    objects: dict[str, Any] = {
        "first": Stateful({"w": torch.ones(2)}),
        "arrays": Stateful({"a": np.arange(3), "s": np.float32(2), "g": random.Random(1)}),
        "one": Stateful({"shared": shared, "view": shared[1:]}),
        "other": Stateful({"shared": shared}),
        "counted": Stateful({"c": Counter("aab"), "z": 1 + 2j, "none": None, "$": "tag"}),
        "pickle": pickled([1, 2]),
        "last": Stateful(torch.zeros(2)),
    }
    again = Recapture()
    for turn in range(3):
        objects["arrays"].state["a"] = np.arange(3) + turn
        assert_as_captured(again, objects)


def test_tensors_that_are_equal_on_all_ranks_are_known_by_their_memory() -> None:
    """When other memory is known to be equal, the state is read anew, since that decides who stores it."""
    model, optimizer, _ = trained()
    objects = {"model": model, "optimizer": optimizer}
    again = Recapture()
    assert not assert_as_captured(again, objects)
    known = frozenset(parameter.untyped_storage().data_ptr() for parameter in model.parameters())
    assert not assert_as_captured(again, objects, known)
    assert assert_as_captured(again, objects, known)


def test_an_error_is_the_same_the_second_time() -> None:
    """A value that can't be stored is a StateError with its key, also where there was a good one before."""
    plain = Stateful({"n": 1})
    again = Recapture()
    again.capture({"plain": plain}, NOTHING, NOTHING)
    plain.state["n"] = object()
    with pytest.raises(StateError, match="plain/n"):
        again.capture({"plain": plain}, NOTHING, NOTHING)
    plain.state["n"] = 2
    assert not assert_as_captured(again, {"plain": plain})


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.builds(torch.full, st.tuples(st.integers(0, 3)), st.integers(0, 9)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2) | st.integers(0, 3) | st.just("$"), inner, max_size=3)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(values, min_size=1, max_size=4))
def test_any_state_after_any_other(states: list[Any]) -> None:
    """Whatever follows on whatever: the tree and the tensors are those of a first reading, and of a second."""
    again = Recapture()
    for state in states:
        objects = {"a": Stateful(state), "b": Stateful(states[0])}
        assert_as_captured(again, objects)
        assert_as_captured(again, objects)
