"""`restore.mode=finetune`: the weights of what was trained before, and nothing else.

Law: every rank reads what its own modules need; which stored model a tracked one gets is told if it isn't plain.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from autoresume.config.restore_request import RestoreRequest
from autoresume.errors import AutoresumeError, CheckpointInvalid, UsageError
from autoresume.load import read_checkpoint
from autoresume.ranks.agreement import Ranks
from autoresume.restore.apply_weights import load_weights
from autoresume.restore.beginning import Beginning
from autoresume.restore.report import RestoreReport
from autoresume.restore.weight_files import read_weights

_VISIBLE_SECONDS = 60.0


def load_initial_weights(
    begin: Beginning,
    request: RestoreRequest,
    ranks: Ranks,
    modules: Mapping[str, torch.nn.Module],
    report: RestoreReport,
) -> None:
    """Load the weights that the run begins with. Every rank must call it. Raises UsageError, StateError."""
    if begin.checkpoint is None:
        stored = _read_foreign(ranks, begin)
        pairs = pair_models(modules, list(stored), request, begin.description)
    else:
        pairs = pair_models(modules, begin.models, request, begin.description)
        # Shards are read as shards where the names are the same on both sides.
        same = {there: modules[here] for here, there in pairs.items() if not request.rename}
        found = read_checkpoint.read_chosen(
            begin.storage, begin.checkpoint, ranks, same, frozenset(pairs.values()), into_live=False
        )
        stored = found.states
    for here, there in pairs.items():
        matching = load_weights(here, modules[here], stored[there], request, begin.description)
        name = here if there in (here, "") else f"{here} (of {there})"
        report.restored.append(name)
        report.notes += [f"{here}: {note}" for note in matching.notes]
        report.missing += [f"{here}.{key}" for key in matching.missing]
        report.unused += [f"{there or here}.{key}" for key in matching.unused]
    report.missing += [name for name in modules if name not in pairs]


def _read_foreign(ranks: Ranks, begin: Beginning) -> dict[str, dict[str, torch.Tensor]]:
    problem, models = None, {}
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not begin.path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # rank 0 has it: a shared file system shows it to other nodes a little later
    try:
        models = read_weights(begin.path).models
    except (AutoresumeError, OSError) as error:
        problem = str(error)
    problems = [one for one in ranks.gather(problem) if one]
    if problems:
        raise CheckpointInvalid(f"{problems[0]}. Nothing was started.")
    return models


def pair_models(
    modules: Mapping[str, Any], stored: Sequence[str], request: RestoreRequest, words: str
) -> dict[str, str]:
    """Which stored model each tracked one gets: as `restore.weights` says, else by name, else the only one.

    Raises UsageError.
    """
    if not modules:
        raise UsageError(f"{words}: this script tracks no model; run.track(model=...) comes before the loop")
    for here, there in request.weights.items():
        if here not in modules or there not in stored:
            raise UsageError(
                f"restore.weights={{{here!r}: {there!r}}}: tracked models are {', '.join(modules)}; stored ones are "
                f"{', '.join(stored) or 'none'}"
            )
    left = [name for name in modules if not request.is_fresh(name)]
    pairs = {name: request.weights.get(name, name) for name in left if request.weights.get(name, name) in stored}
    if not pairs and len(left) == len(stored) == 1:
        return {left[0]: stored[0]}
    if not pairs:
        raise UsageError(
            f"{words}: the models there are {', '.join(stored) or 'none'}, and here {', '.join(left)}; say which gets "
            f"which, e.g. restore.weights={{{left[0] if left else 'model'!r}: {stored[0] if stored else 'model'!r}}}"
        )
    absent = [name for name in left if name not in pairs and not request.is_lenient(name)]
    if absent:
        raise UsageError(
            f"{words}: it has no model {', '.join(absent)}; it has {', '.join(stored)}. Say whose weights it gets "
            f"(restore.weights), or let it begin anew (restore.fresh={absent[0]!r})"
        )
    return pairs
