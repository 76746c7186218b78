"""autoresume: training that is preempted goes on bit for bit.

Law: importing this costs nothing; the names below load their modules (and torch) when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autoresume.datasets import rebuild_dataset as rebuild_dataset
    from autoresume.decorator import autoresume as autoresume
    from autoresume.decorator import start as start
    from autoresume.run import Run as Run
    from autoresume.run import current as current
    from autoresume.sources.export import load_model_state as load_model_state
    from autoresume.training.pickled import pickled as pickled
    from autoresume.training.state import replicated as replicated

_HOMES = {
    "autoresume": "autoresume.decorator",
    "start": "autoresume.decorator",
    "load_model_state": "autoresume.sources.export",
    "rebuild_dataset": "autoresume.datasets",
    "Run": "autoresume.run",
    "current": "autoresume.run",
    "pickled": "autoresume.training.pickled",
    "replicated": "autoresume.training.state",
}

__all__ = [
    "Run",
    "__version__",
    "autoresume",
    "current",
    "load_model_state",
    "pickled",
    "rebuild_dataset",
    "replicated",
    "start",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'autoresume' has no attribute {name!r}")
