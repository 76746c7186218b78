"""What a restore did: what a start took over, what it did not, and what has changed since.

Law: nothing is taken over, left out or reset in silence. Rank 0 tells it in a few lines and keeps it as JSON; other
ranks tell what is another for them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from autoresume.restore.changes import Change

log = logging.getLogger("autoresume")

_SHOWN = 8


@dataclass
class RestoreReport:
    """Of one rank. The lists hold names, with a reason where it isn't plain."""

    origin: str = ""
    """Where it came from, in words; empty for a run that starts from scratch."""
    restored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Tracked here, and not in the checkpoint: as the script made it."""
    unused: list[str] = field(default_factory=list)
    """In the checkpoint, and not taken over."""
    reset: list[str] = field(default_factory=list)
    """In both, and left as the script made it."""
    notes: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def lists(self) -> dict[str, list[str]]:
        return {
            "restored": self.restored,
            "missing": self.missing,
            "unused": self.unused,
            "reset": self.reset,
            "notes": self.notes,
        }

    def to_json(self, ranks: Sequence[dict[str, list[str]]]) -> dict[str, Any]:
        """`ranks`: the parts of all ranks, this one's first, as they were told."""
        differ = {str(rank): parts for rank, parts in enumerate(ranks) if parts != ranks[0]}
        return {
            "origin": self.origin,
            **self.lists(),
            "changes": [vars(change) for change in self.changes],
            "ranks": differ,
        }

    def log(self) -> None:
        """In the log: what is not as a reader would expect. Other code than before has been told already."""
        for title, lines in (("new, not in the checkpoint", self.missing), ("not taken over", self.unused),
                             ("left as the script makes it", self.reset)):  # fmt: skip
            if lines:
                log.warning("%s: %s", title, _some(lines))
        for line in self.notes:
            log.info("%s", line)
        for verdict, level, words in (
            ("risky", logging.WARNING, "changed since, which the restored state may not fit"),
            ("unknown", logging.INFO, "changed since"),
            ("safe", logging.INFO, "changed since, which is safe"),
        ):
            lines = [str(one) for one in self.changes if one.verdict == verdict and one.what != "code"]
            if lines:
                log.log(level, "%s: %s", words, _some(lines))


def _some(lines: Sequence[str]) -> str:
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more
