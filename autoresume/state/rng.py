"""The random number generators of this process: python, numpy, torch's CPU, and those of CUDA devices.

Law: `get` and `put` are exact inverses, draw nothing, and wait for no device. Each rank keeps its own states.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from autoresume.format.digest import digest

_WORDS = 624


def get_rng_state() -> dict[str, Any]:
    """All states. Copies: they do not change when numbers are drawn afterwards."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        # As an array: 625 numbers would be the longest part of a checkpoint's tree, and of reading a state.
        "python": {"version": version, "words": np.array(words, dtype=np.uint32), "gauss": gauss},
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        current = torch.cuda.current_device()
        # Of the others those that were drawn from: a script may use a device that it has not made the current one.
        drawn = [index for index, one in enumerate(torch.cuda.default_generators) if one.get_offset()]
        state["cuda"] = {device: torch.cuda.get_rng_state(device) for device in sorted({current, *drawn})}
        state["cuda_current"] = current
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Set all states. The state of the device that was the current one goes to the one that is it now; those of others
    to the same device, if that is there."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if not torch.cuda.is_available():
        return
    for device, value in state.get("cuda", {}).items():
        if device == state["cuda_current"]:
            torch.cuda.set_rng_state(value.cpu())
        elif device < torch.cuda.device_count() and device != torch.cuda.current_device():
            torch.cuda.set_rng_state(value.cpu(), device)


def why_not_restorable(state: dict[str, Any]) -> str | None:
    """Why some generator has no state to go on from, in words, if that is so: the devices are others than before."""
    here = torch.cuda.is_available()
    if state.get("cuda") and not here:
        return "the checkpoint was made with CUDA, which is not there"
    if here and torch.cuda.is_initialized() and not state.get("cuda"):  # type: ignore[no-untyped-call]
        return "the checkpoint was made without CUDA, which is used here"
    return None


def rng_digests() -> dict[str, str]:
    """A digest of each generator's state, by the generator's name."""
    state = get_rng_state()
    numbers, python = state["numpy"]["state"], state["python"]
    devices = {"cuda" if device == state["cuda_current"] else f"cuda:{device}": value.numpy().tobytes()
               for device, value in state.get("cuda", {}).items()}  # fmt: skip
    return {
        **{name: digest(value) for name, value in devices.items()},
        "python": digest(repr((python["words"].tobytes(), python["gauss"])).encode()),
        "numpy": digest(repr((numbers["pos"], numbers["key"].tobytes())).encode()),
        "torch": digest(state["torch"].numpy().tobytes()),
    }


def never_drawn() -> set[str]:
    """Of python's and numpy's generators those that stand as they were seeded: nobody has drawn from them since.

    A Mersenne Twister that was just seeded has all of its 624 words behind it; numpy's, from the system, all but one.
    """
    _, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    found = {"python"} if words[-1] == _WORDS and gauss is None else set()
    return found | ({"numpy"} if numpy["state"]["pos"] in (_WORDS - 1, _WORDS) and not numpy["has_gauss"] else set())


def seed_all(value: int) -> None:
    """Seed all generators of this process."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)  # the accelerators' too


def mix_seed(*numbers: int) -> int:
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
