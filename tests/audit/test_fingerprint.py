"""Fingerprints: the same for the same content, others for others, and nothing is touched."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from autoresume.audit import fingerprint
from autoresume.audit.fingerprint import Generators, of_value
from autoresume.audit.note import generators_in


class Sample(NamedTuple):
    inputs: Any
    target: Any


class Graph:
    def __init__(self, nodes: torch.Tensor) -> None:
        self.nodes, self.name = nodes, "graph"


def tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


BATCHES = {
    "pair": lambda seed: (tensor(seed, 4, 3), torch.arange(4)),
    "large": lambda seed: [tensor(seed, 32, 3, 16, 16)],
    "channels last": lambda seed: tensor(seed, 8, 3, 16, 16).to(memory_format=torch.channels_last),
    "a slice": lambda seed: tensor(seed, 64, 129)[:, :-1],
    "a column": lambda seed: tensor(seed, 64, 3)[:, 1],
    "turned": lambda seed: tensor(seed, 64, 33).t(),
    "bfloat16": lambda seed: {"ids": tensor(seed, 4, 5).bfloat16(), "mask": torch.ones(4, dtype=torch.bool)},
    "number": lambda seed: tensor(seed, 1)[0],
    "array": lambda seed: {"x": tensor(seed, 4, 3).numpy(), "y": ["a", "b"]},
    "tuple": lambda seed: Sample(tensor(seed, 2, 2), None),
    "text": lambda seed: [f"sentence {seed}", b"bytes", 3, 0.5],
    "object": lambda seed: Graph(tensor(seed, 5, 2)),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch(kind: str) -> None:
    """Made twice it has one fingerprint, made otherwise another; and neither the batch nor a generator is touched."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, again, other = (of_value(BATCHES[kind](seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert torch.equal(before, torch.get_rng_state())


def test_what_has_no_bytes_here() -> None:
    """Empty, sparse, meta and lazy tensors are told apart by their form."""
    values = [torch.empty(0), torch.empty(0, 3), torch.eye(3).to_sparse(), torch.empty(2, device="meta"), None]
    assert len({of_value(value) for value in values}) == len(values)


def test_another_process_says_the_same() -> None:
    """No address, no hash order: what one life noted is compared in another."""
    code = (
        "import torch; from autoresume.audit.fingerprint import of_value; "
        "print(of_value({'x': torch.arange(5000.), 'words': {'a', 'b'}, 'n': [1, (2.5, None)]}))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == of_value({"x": torch.arange(5000.0), "words": {"b", "a"}, "n": [1, (2.5, None)]})


def looker() -> Callable[[], dict[str, str]]:
    generators = Generators()
    return lambda: generators_in(generators.look())


def test_each_generator_has_its_own() -> None:
    """Drawing from one moves its fingerprint alone; putting it back brings it back."""
    look = looker()
    for name, draw in {"python": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(1)}.items():
        state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        before = look()
        draw()
        after = look()
        assert {key for key in before if before[key] != after[key]} == {name}
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
        assert look() == before


def test_where_states_can_t_be_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another Python, or with another generator in numpy, they are asked."""
    monkeypatch.setattr(fingerprint.sys.implementation, "name", "other")  # type: ignore[attr-defined]
    look = looker()
    old = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        before = look()
        random.random()
        np.random.rand()
        after = look()
    finally:
        np.random.set_bit_generator(old)
    assert {key for key in before if before[key] != after[key]} == {"python", "numpy"}
