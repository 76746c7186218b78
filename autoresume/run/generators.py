"""The generators of this process (python, numpy, torch) over the lives of a run.

Law: they are restored last: once when the run is restored, and again before its first batch, so that
nothing that making models, iterators or workers draws shows in them.
"""

from __future__ import annotations

import logging
from typing import Any

from autoresume.state import rng

log = logging.getLogger("autoresume")


class Generators:
    """`began` tells where they stood when the run's first life restored."""

    def __init__(self) -> None:
        self.began: dict[str, str] = {}
        self._restored: dict[str, Any] | None = None

    def begin(self) -> None:
        """Just before anything of a checkpoint is looked at."""
        self.began = rng.rng_digests()

    def compare_beginnings(self, before: dict[str, str]) -> list[str]:
        """Which of them stand elsewhere than in the first life: what a script builds from random numbers before it
        restores is the same only if it seeds them."""
        differ = [name for name, value in self.began.items() if before.get(name, value) != value]
        self.began = before
        return differ

    def hold(self, states: dict[str, Any]) -> None:
        self._restored = states

    def restore(self) -> None:
        """Set them to what was taken over, which is kept for `before_first`."""
        if self._restored is not None:
            rng.set_rng_state(self._restored)

    def before_first_batch(self) -> None:
        """The first batch after a resume: whatever making iterators drew is undone."""
        self.restore()
        self._restored = None
