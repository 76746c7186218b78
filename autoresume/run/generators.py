"""The generators of this process (python, numpy, torch) over the lives of a run.

Law: they are restored last: once when the run is restored, and again where its data go on, so that nothing that making
models, iterators or workers draws shows in them. But for scripts whose steps draw before they fetch a batch: that
was seen in the first steps, and is left to them.
"""

from __future__ import annotations

import logging
from typing import Any

from autoresume.state import rng

log = logging.getLogger("autoresume")


_LOOKS = 3


class Generators:
    """`began` tells where they stood when the run's first life restored. `draws_first` tells whether a step of the
    script draws before it fetches; None as long as that is not known."""

    def __init__(self) -> None:
        self.began: dict[str, str] = {}
        self.differed: list[str] = []
        self._unused: set[str] = set()
        self.draws_first: bool | None = None
        self._restored: dict[str, Any] | None = None
        self._at_boundary: dict[str, str] | None = None
        self._looks = _LOOKS

    def begin(self) -> None:
        """Just before anything of a checkpoint is looked at."""
        self.began, self._unused = rng.rng_digests(), rng.never_drawn()

    def compare_beginnings(self, before: dict[str, str]) -> list[str]:
        """Which of them stand elsewhere than in the first life: what a script builds from random numbers before it
        restores is the same only if it seeds them. Those that nobody has drawn from don't matter."""
        differ = [
            name for name, value in self.began.items() if before.get(name, value) != value and name not in self._unused
        ]
        self.began, self.differed = before, differ
        return differ

    def hold(self, states: dict[str, Any]) -> None:
        self._restored = states

    def restore(self) -> None:
        """Set them to what was taken over, which is kept for `before_first`."""
        if self._restored is not None:
            rng.set_rng_state(self._restored)

    def before_first_batch(self) -> None:
        """A loop of ours begins: whatever was drawn since the run was restored is undone."""
        self.restore()
        self._restored = None

    def going_on(self) -> None:
        """The script begins to iterate data where it was: the same, but for what its step draws before."""
        if self.draws_first:
            self._restored = None
        self.before_first_batch()

    def at_boundary(self) -> None:
        self._at_boundary = rng.rng_digests() if self._looks else None

    def fetching(self) -> None:
        """A batch is fetched in the middle of an epoch."""
        if self._at_boundary is not None:
            self.draws_first = bool(self.draws_first) or self._at_boundary != rng.rng_digests()
            self._at_boundary, self._looks = None, self._looks - 1
