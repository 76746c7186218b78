"""Objects that only pickle: what the script holds of them stays what it holds."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch

from autoresume import pickled


class Environment:
    """Its parts refer to it, and to generators that the script holds as well."""

    def __init__(self, **generators: Any) -> None:
        self.generators = generators
        self.again = list(generators.values())
        self.count = 0
        self.reward = lambda: self.count * 10

    def step(self) -> list[float]:
        self.count += 1
        return [draw(one) for one in self.generators.values()]


class Slotted:
    __slots__ = ("count",)


class Guarded:
    """It says by itself what is pickled."""

    def __init__(self) -> None:
        self.count, self.handle = 0, open

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Rebuilt:
    """It has a way of its own to be made."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __reduce__(self) -> Any:
        return Rebuilt, (self.count,)


def draw(generator: Any) -> float:
    if isinstance(generator, torch.Generator):
        return torch.rand(1, generator=generator).item()
    return float(generator.random())


def make() -> dict[str, Any]:
    numbers = {"numpy": np.random.default_rng(2), "philox": np.random.Generator(np.random.Philox(4))}
    return {"torch": torch.Generator().manual_seed(1), **numbers, "python": random.Random(3)}


def test_generators_inside_go_on_under_their_own_names() -> None:
    """torch's, numpy's and python's generators in a pickled object go on where they were, and the script's own names
    for them, a wrapper around the object and what it refers to itself are the restored ones."""
    generators = make()
    environment = Environment(**generators)
    environment.step()
    data = pickled(environment).dump()
    expected = [environment.step() for _ in range(3)], environment.reward()

    again = make()
    fresh = Environment(**again)
    held = pickled(fresh)
    held.load(data)
    assert held.value is fresh
    assert fresh.again[0] is again["torch"]
    drawn = fresh.step()
    drawn = [drawn, [draw(one) for one in again.values()], fresh.step()]  # through either name
    fresh.count += 1
    assert (drawn, fresh.reward()) == expected


@pytest.mark.parametrize("value", [[1, [2]], {"a": 1}, deque([1, 2], 3)], ids=["list", "dict", "deque"])
def test_containers_are_filled_in_place(value: Any) -> None:
    """A list, dict or deque that is tracked as pickled is the script's own one after a restore."""
    live = type(value)()
    held = pickled(live)
    held.load(pickled(value).dump())
    assert held.value is live
    assert live == value


def test_objects_with_slots_or_a_state_of_their_own() -> None:
    """Slots come back in place; an object that says by itself what is pickled keeps the rest as it is; one that has
    a way of its own to be made is the script's own one afterwards, too."""
    stored, live = Slotted(), Slotted()
    stored.count = 7
    pickled(live).load(pickled(stored).dump())
    assert live.count == 7
    guarded, other = Guarded(), Guarded()
    guarded.count = 5
    pickled(other).load(pickled(guarded).dump())
    assert (other.count, other.handle) == (5, open)
    rebuilt = Rebuilt(1)
    held = pickled(rebuilt)
    held.load(pickled(Rebuilt(6)).dump())
    assert held.value is rebuilt
    assert rebuilt.count == 6


@pytest.mark.parametrize(
    "value", [np.arange(3), 5, torch.Generator().manual_seed(9)], ids=["array", "int", "generator"]
)
def test_what_has_no_content_of_its_own_is_replaced(value: Any) -> None:
    """`value` of a restored array or number is the stored one; a generator itself is set in place."""
    data = pickled(value).dump()
    held = pickled(type(value)() if not isinstance(value, np.ndarray) else np.zeros(3))
    live = held.value
    held.load(data)
    if isinstance(value, torch.Generator):
        assert held.value is live
        assert torch.equal(live.get_state(), value.get_state())
    else:
        assert np.array_equal(held.value, value)


def test_another_class_than_was_stored() -> None:
    """Where the live object is of another class, `value` is the stored one."""
    stored = Environment()
    stored.count = 4
    held: pickled[Any] = pickled(Guarded())
    held.load(pickled(stored).dump())
    assert held.value.reward() == 40
