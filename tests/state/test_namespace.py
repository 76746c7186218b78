"""`run.state` over lives: what the script holds is what comes back."""

from __future__ import annotations

import copy

import numpy as np
import torch

from autoresume.state.namespace import Namespace


def filled() -> Namespace:
    state = Namespace()
    state.image, state.array, state.counts = torch.zeros(3), np.zeros(2), [1, torch.zeros(1)]
    state.table, state.pair = {"a": torch.zeros(2), "b": 1}, (torch.zeros(1), 2)
    state.random = np.random.default_rng(0)
    return state


def stored() -> dict[str, object]:
    random = np.random.default_rng(7)
    random.random()
    return {
        "image": torch.ones(3), "array": np.ones(2), "counts": [2, torch.ones(1), 3],
        "table": {"b": 2, "a": torch.ones(2), "c": 3}, "pair": (torch.ones(1), 4), "random": random,
    }  # fmt: skip


def test_what_the_script_holds_gets_the_stored_content() -> None:
    """An optimizer or a sampler holds the same tensor, array, list, dict or generator: it goes on with the stored one."""
    state = filled()
    held = {**state.state_dict(), "inner": state.table["a"], "item": state.counts[1], "first": state.pair[0]}
    state.load_state_dict(stored())
    assert all(state.state_dict()[name] is held[name] for name in ("image", "array", "counts", "table", "random"))
    assert (state.table["a"], state.counts[1], state.pair[0]) == (held["inner"], held["item"], held["first"])
    assert held["image"].tolist() == [1, 1, 1]
    assert held["array"].tolist() == [1, 1]
    assert held["counts"] == [2, torch.ones(1), 3]
    assert list(held["table"]) == ["b", "a", "c"]
    assert state.pair[1] == 4
    expected = np.random.default_rng(7)
    expected.random()
    assert held["random"].random() == expected.random()


def test_what_does_not_fit_is_the_stored_object() -> None:
    """Another shape, dtype or type: nothing is cut, cast or mixed."""
    state = filled()
    image, table = state.image, state.table
    state.load_state_dict({"image": torch.ones(4), "array": np.ones(2, dtype=np.float32), "table": [1], "counts": None})
    assert state.image.tolist() == [1] * 4
    assert image.tolist() == [0] * 3
    assert state.array.dtype == np.float32
    assert (state.table, table["b"], state.counts) == ([1], 1, None)


def test_memory_of_a_tracked_model_is_left_alone() -> None:
    """A script that begins with `run.state.best = model.state_dict()` holds the model's own memory there: what was the
    best goes beside it, and not into the model."""
    model = torch.nn.Linear(2, 2)
    before = copy.deepcopy(model.state_dict())
    state = Namespace()
    state.best = model.state_dict()
    best = {name: torch.full_like(value, 5.0) for name, value in before.items()}
    memory = frozenset(value.untyped_storage().data_ptr() for value in model.state_dict().values())
    state.load_state_dict({"best": best}, memory)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.eq(5.0).all() for value in state.best.values())


def test_a_view_is_left_alone() -> None:
    """A part of a data set that the script keeps as its first batch is the data set's memory: the stored batch goes
    beside it, and not into the data."""
    data, table = torch.zeros(4, 2), np.zeros((4, 2))
    state = Namespace()
    state.batch, state.rows, state.shared, state.wide = (
        data[:2],
        table[:2],
        torch.from_numpy(table),
        torch.zeros(1).expand(3),
    )
    state.load_state_dict({
        "batch": torch.ones(2, 2), "rows": np.ones((2, 2)), "shared": torch.ones(4, 2).double(), "wide": torch.ones(3),
    })  # fmt: skip
    assert not data.any()
    assert not table.any()
    assert all(bool((value == 1).all()) for value in state.state_dict().values())


def test_another_shape_of_the_same_memory_is_no_view_of_something_else() -> None:
    """What was made and brought into its shape is the script's own; so is an image from numpy that is trained."""
    state = Namespace()
    state.table, state.order = torch.zeros(4).view(2, 2), np.zeros(4).reshape(2, 2)
    state.image = torch.from_numpy(np.zeros(2)).requires_grad_()
    held = state.state_dict()
    state.load_state_dict({"table": torch.ones(2, 2), "order": np.ones((2, 2)), "image": torch.ones(2).double()})
    for name, value in state.state_dict().items():
        assert value is held[name]
        assert bool((value == 1).all())


def test_a_leaf_that_is_trained_stays_one() -> None:
    """It keeps its gradient's switch, and autograd notices nothing."""
    state = Namespace()
    state.image = image = torch.zeros(2, requires_grad=True)
    state.load_state_dict({"image": torch.ones(2)})
    assert state.image is image
    assert (image.requires_grad, image.is_leaf, image.tolist()) == (True, True, [1.0, 1.0])
