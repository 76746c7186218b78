"""autoresume: training that is preempted goes on bit for bit.

Law: importing this costs nothing; the names below load their modules (and torch) when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autoresume.restore.export import load_model_state as load_model_state
    from autoresume.run.datasets import rebuild_dataset as rebuild_dataset
    from autoresume.run.decorator import autoresume as autoresume
    from autoresume.run.decorator import start as start
    from autoresume.run.handle import Run as Run
    from autoresume.run.handle import current as current
    from autoresume.state.pickled import pickled as pickled
    from autoresume.state.replicated import replicated as replicated

_HOMES = {
    "autoresume": "autoresume.run.decorator",
    "start": "autoresume.run.decorator",
    "load_model_state": "autoresume.restore.export",
    "rebuild_dataset": "autoresume.run.datasets",
    "Run": "autoresume.run.handle",
    "current": "autoresume.run.handle",
    "pickled": "autoresume.state.pickled",
    "replicated": "autoresume.state.replicated",
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
