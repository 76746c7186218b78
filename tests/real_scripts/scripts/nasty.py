"""Interrupts the script that calls it, where NASTY says; and writes down what the script ended with.

NASTY is "SIGNAL@WHEN" or "SIGNAL@WHEN/PLACE". SIGNAL: TERM or KILL (this process), GROUP (SIGTERM to
the whole process group). WHEN: a step, or "+N": the Nth time that the place is reached in this life.
PLACE: which of the script's places, by default "step". "@1" after it: on rank 1 alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoresume.audit import note_file

note_file.VISIBLE_SECONDS = 0.0  # steps are quick here: what is trained again shall have been noted

RANK = int(os.environ.get("RANK", "0"))
_reached: dict[str, int] = {}


def place(step: int, name: str = "step") -> None:
    """A place in `step` (1 is the first) where the script may be interrupted."""
    _reached[name] = _reached.get(name, 0) + 1
    spec = os.environ.get("NASTY", "")
    if not spec:
        return
    which, _, when = spec.partition("@")
    when, _, rank = when.partition("@")
    when, _, wanted = when.partition("/")
    if (wanted or "step") != name or (rank and int(rank) != RANK):
        return
    if _reached[name] != int(when[1:]) if when.startswith("+") else step != int(when):
        return
    if which == "GROUP":
        os.killpg(0, signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGKILL if which == "KILL" else signal.SIGTERM)


def digest(value: Any) -> str:
    """Of any state, bit for bit, by its content alone."""
    hasher = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            feed(("tensor", str(item.dtype), tuple(item.shape)))
            hasher.update(item.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, np.ndarray):
            feed(("array", str(item.dtype), item.shape))
            hasher.update(np.ascontiguousarray(item).tobytes())
        elif isinstance(item, dict):
            feed(("dict", len(item)))
            for key, inner in item.items():
                feed(key)
                feed(inner)
        elif isinstance(item, (list, tuple)):
            hasher.update(f"{type(item).__name__}{len(item)}".encode())
            for inner in item:
                feed(inner)
        elif callable(getattr(item, "state_dict", None)):
            feed(item.state_dict())
        else:
            hasher.update(f"{type(item).__name__}:{item!r}".encode())

    feed(value)
    return hasher.hexdigest()[:16]


def generators() -> dict[str, str]:
    return {
        "python": digest(random.getstate()),
        "numpy": digest(np.random.get_state(legacy=False)),
        "torch": digest(torch.get_rng_state()),
    }


def finish(**objects: Any) -> None:
    """The script's last lines: what it would save as final. An interrupted run never comes here."""
    path = Path(_START) / f"final-{RANK}.json"
    found = {name: digest(value) for name, value in objects.items()}
    path.write_text(json.dumps({**found, **generators()}, indent=1))


_START = os.getcwd()
