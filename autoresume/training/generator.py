"""Generators of torch, numpy and python as objects of the run: their state goes in and out, in place.

Law: a generator that somebody holds stays the same object; only its state is set.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

GENERATORS = (torch.Generator, np.random.Generator, random.Random)


class GeneratorState:
    """state_dict for the generators of torch, numpy and python."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.generator, torch.Generator):
            return {"kind": "torch", "device": str(self.generator.device), "state": self.generator.get_state()}
        if isinstance(self.generator, np.random.Generator):
            return {"kind": "numpy", "state": dict(self.generator.bit_generator.state)}
        return {"kind": "python", "state": self.generator.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.generator, torch.Generator):
            self.generator.set_state(state["state"])
        elif isinstance(self.generator, np.random.Generator):
            self.generator.bit_generator.state = state["state"]
        else:
            self.generator.setstate(state["state"])


def new_generator(state: dict[str, Any]) -> Any:
    made: Any
    if state["kind"] == "torch":
        device = state["device"] if torch.cuda.is_available() else "cpu"
        made = torch.Generator(device)
    elif state["kind"] == "numpy":
        bits = getattr(np.random, str(state["state"]["bit_generator"]), None)
        if not (isinstance(bits, type) and issubclass(bits, np.random.BitGenerator)):
            raise ValueError(f"unknown bit generator {state['state']['bit_generator']!r}")
        made = np.random.Generator(bits())
    else:
        made = random.Random()  # noqa: S311
    GeneratorState(made).load_state_dict(state)
    return made
