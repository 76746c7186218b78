"""Weights of another run, or of somebody else's file, into a live model.

Law: nothing is written into the model before it is known what fits. It is an error when nothing matches, when
something is left over or missing that nobody allowed, and when the weights are afterwards what they were before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from autoresume.config.restore_request import RestoreRequest
from autoresume.errors import StateError
from autoresume.load.load_state import load_state
from autoresume.restore.match_keys import Matching, match_keys

_SHOWN = 20


def load_weights(
    name: str, module: torch.nn.Module, stored: Mapping[str, Any], request: RestoreRequest, words: str
) -> Matching:
    """Load what matches of `stored` (key -> tensor) into `module`, which is tracked as `name`.

    `words` say where it came from. Raises StateError; the module is unchanged then, unless it is the last reason.
    """
    live = {key: value for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    there = {key: value for key, value in stored.items() if isinstance(value, torch.Tensor)}
    shapes = [{key: tuple(value.shape) for key, value in one.items()} for one in (there, live)]
    found = match_keys(shapes[0], shapes[1], request.rename, request.remove, request.fresh_inside(name))
    problems = [f"{key} has shape {list(was)} there and {list(now)} here" for key, was, now in found.misfits]
    problems += [f"only here: {key}" for key in found.missing] + [f"only there: {key}" for key in found.unused]
    if not found.pairs:
        raise StateError(_text(f"nothing of {words} matches {name!r}", problems, name))
    if problems and not request.is_lenient(name):
        raise StateError(_text(f"the weights in {words} and {name!r} differ", problems, name))
    before = {key: live[key].detach().clone() for key in found.pairs.values()}
    values = {**live, **{here: there[key] for key, here in found.pairs.items()}}
    load_state(name, module, {**module.state_dict(), **values})
    after = module.state_dict()
    if before and all(_equal(after[key], value) for key, value in before.items()):
        raise StateError(
            f"{name!r} has the same weights as before: nothing came of {words}. Did the script load them by itself? "
            "Leave restore out then."
        )
    return found


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(torch.equal(_local(one), _local(other)))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a DTensor."""
    found = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found.detach()


def _text(what: str, problems: list[str], name: str) -> str:
    shown = "\n  ".join(problems[:_SHOWN]) + (
        f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > 20 else ""
    )
    return (
        f"{what}:\n  {shown}\nNothing was loaded. Write keys anew with restore.rename={{pattern: replacement}}, leave "
        f"some out with restore.remove=[pattern], keep some of here as they are with restore.fresh=['{name}.pattern'], "
        f"or take whatever fits with restore.strict={{{name!r}: false}}."
    )
