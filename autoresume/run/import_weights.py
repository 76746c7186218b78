"""Somebody else's weights as a run of ours: one checkpoint, after step 0, from which others begin.

Law: it is saved by the same path as every checkpoint; nothing else writes the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autoresume.config.options import Options
from autoresume.errors import UsageError
from autoresume.restore.export import find_weights, pick_model
from autoresume.run.handle import Run
from autoresume.run.resources import Resources


class _Weights(torch.nn.Module):
    """A model that is nothing but its state."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._tensors = dict(tensors)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return dict(self._tensors)


def import_weights(source: str, folder: Path, model: str | None = None) -> str:
    """Make the run directory `folder` of the weights in `source`; says what was done. Durable when it returns.

    Raises UsageError if there is a run already, or no weights in `source`, CheckpointInvalid.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; give another --to")
    found, _ = find_weights(source)
    if len(found.models) == 1:
        ((name, tensors),) = found.models.items()
        models = {model or name: tensors}
    else:
        models = {model: pick_model(found, model)} if model else found.models
    run = Run(Resources(Options(), folder))
    run.track(**{name or "model": _Weights(tensors) for name, tensors in models.items()})
    run.configure({"imported_from": source, "kind": found.kind, **found.about})
    run.restore()
    run.finish()
    counts = ", ".join(f"{name or 'model'} ({len(tensors)} tensors)" for name, tensors in models.items())
    return f"{folder}: {counts}, from a {found.kind}; begin with --restore.mode finetune --restore.from {folder}"
