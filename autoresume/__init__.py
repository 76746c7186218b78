"""autoresume: training that is preempted goes on bit for bit.

Law: importing this costs nothing; the names below load their modules (and torch) when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autoresume.decorator import autoresume as autoresume
    from autoresume.decorator import start as start
    from autoresume.run import Run as Run
    from autoresume.run import current as current
    from autoresume.training.state import pickled as pickled
    from autoresume.training.state import replicated as replicated

_HOMES = {
    "autoresume": "autoresume.decorator",
    "start": "autoresume.decorator",
    "Run": "autoresume.run",
    "current": "autoresume.run",
    "pickled": "autoresume.training.state",
    "replicated": "autoresume.training.state",
}

__all__ = ["Run", "__version__", "autoresume", "current", "pickled", "replicated", "start"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'autoresume' has no attribute {name!r}")
