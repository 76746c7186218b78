"""What a node daemon is to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoresume.node.causes import Cause

TURN_SECONDS = 0.01
"""Of a daemon's loop."""
MEETING_SECONDS = 600.0
"""How long nodes wait for each other."""


@dataclass(frozen=True)
class Plan:
    """What a daemon is to do. `command` starts the ranks of this node; `grace_seconds` holds for every stop signal."""

    command: Sequence[str]
    local_ranks: int
    grace_seconds: float
    environment: Mapping[str, str]
    nodes: int = 1
    """Nodes of the job, spare ones included."""
    node_rank: int = 0
    spares: int = 0
    meeting: Path | None = None
    """Folder on a file system that all nodes share; needed for more than one."""
    run_folder: Path | None = None
    """Of the run, where that is known before its ranks have named it."""
    bare: bool = False
    """The command is a rank itself, and no launcher: each node has one."""
    restarts_here: bool = False
    """Whether ranks that came to a bad end are started again by this daemon; else by whoever started it."""
    budgets: Mapping[Cause, int | None] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        return self.nodes - self.spares
