"""Generators of torch, numpy and python as objects of the run: their state goes in and out, in place.

Law: a generator that somebody holds stays the same object; only its state is set. A state of another kind of device
can't be: then it seeds the generator, which is said.
"""

from __future__ import annotations

import hashlib
import logging
import random
from typing import Any

import numpy as np
import torch

log = logging.getLogger("autoresume")

GENERATOR_TYPES = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class GeneratorState:
    """state_dict for the generators of torch, numpy and python."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.generator, torch.Generator):
            return {"kind": "torch", "device": str(self.generator.device), "state": self.generator.get_state()}
        if isinstance(self.generator, np.random.Generator):
            return {"kind": "numpy", "state": dict(self.generator.bit_generator.state)}
        if isinstance(self.generator, np.random.RandomState):
            return {"kind": "numpy.RandomState", "state": dict(self.generator.get_state(legacy=False))}
        return {"kind": "python", "state": self.generator.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.generator, torch.Generator):
            _set(self.generator, state)
        elif isinstance(self.generator, np.random.Generator):
            self.generator.bit_generator.state = state["state"]
        elif isinstance(self.generator, np.random.RandomState):
            self.generator.set_state(state["state"])
        else:
            self.generator.setstate(state["state"])


def _set(generator: torch.Generator, state: dict[str, Any]) -> None:
    before, here = torch.device(state["device"]).type, generator.device.type
    if before == here:
        generator.set_state(state["state"])
        return
    hashed = hashlib.blake2b(state["state"].cpu().numpy().tobytes(), digest_size=8).digest()
    generator.manual_seed(int.from_bytes(hashed, "little") >> 1)
    log.warning("a generator of %s was stored, and is one of %s here: it is seeded with its state", before, here)


def _device(stored: str) -> torch.device:
    """The device itself, or where it is not there the current one of its kind, or the CPU."""
    device = torch.device(stored)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    known = (device.index or 0) < torch.cuda.device_count()
    return device if known else torch.device("cuda", torch.cuda.current_device())


def new_generator(state: dict[str, Any]) -> Any:
    made: Any
    if state["kind"] == "torch":
        made = torch.Generator(_device(state["device"]))
    elif state["kind"] == "numpy":
        bits = getattr(np.random, str(state["state"]["bit_generator"]), None)
        if not (isinstance(bits, type) and issubclass(bits, np.random.BitGenerator)):
            raise ValueError(f"unknown bit generator {state['state']['bit_generator']!r}")
        made = np.random.Generator(bits())
    elif state["kind"] == "numpy.RandomState":
        made = np.random.RandomState()
    else:
        made = random.Random()  # noqa: S311
    GeneratorState(made).load_state_dict(state)
    return made
