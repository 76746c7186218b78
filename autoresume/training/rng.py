"""The random number generators of this process: python, numpy, torch's CPU, and every accelerator.

Law: `get` and `put` are exact inverses and draw nothing. Each rank keeps its own states.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from autoresume.format.digest import digest


def get() -> dict[str, Any]:
    """All states. Copies: they do not change when numbers are drawn afterwards."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        # As an array: 625 numbers would be the longest part of a checkpoint's tree, and of reading a state.
        "python": {"version": version, "words": np.array(words, dtype=np.uint32), "gauss": gauss},
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # Only the devices that this process uses: asking for the others would make a context on each.
        device = torch.cuda.current_device()
        state["cuda"] = {device: torch.cuda.get_rng_state(device)}
    return state


def put(state: dict[str, Any]) -> None:
    """Set all states. A CUDA state goes to the device it came from, or to the current one where that is not there."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if state.get("cuda") and torch.cuda.is_available():
        for device, value in state["cuda"].items():
            index = device if device < torch.cuda.device_count() else torch.cuda.current_device()
            torch.cuda.set_rng_state(value.cpu(), index)


def fingerprints() -> dict[str, str]:
    """A digest of each host generator's state, by the generator's name."""
    state = get()
    numbers, python = state["numpy"]["state"], state["python"]
    return {
        "python": digest(repr((python["words"].tobytes(), python["gauss"])).encode()),
        "numpy": digest(repr((numbers["pos"], numbers["key"].tobytes())).encode()),
        "torch": digest(state["torch"].numpy().tobytes()),
    }


def seed(value: int) -> None:
    """Seed all generators of this process."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)  # the accelerators' too


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers, well mixed: neighbours give unrelated seeds.

    SplitMix64's finaliser (Steele, Lea, Flood 2014), chained over the numbers.
    """
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + (number & 0xFFFFFFFFFFFFFFFF) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
