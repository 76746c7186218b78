"""How many batches a loop of the script's own holds at its step boundaries without having trained on them.

Law: found out once, in the loop's first steps. Between a batch and the next, or the boundary, a loop goes forward
through its model if it trains on one; autograd counts what it notes for that. Where nothing is noted, counting is left:
a loop that looks ahead takes more before its first boundary than before each later one. A batch that the script itself
keeps in `run.state` is not held: it comes back with that.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

_looks = itertools.count()
_MOST = 64
"""Batches of which it is remembered what they are made of."""


class HeldBatches:
    """Of one reader. `ahead` is what it found; `settled` once it is certain."""

    def __init__(self) -> None:
        self.ahead = 0
        self.settled = False
        self.given = False
        """Said by the script, not found out."""
        self._counts: list[int] = []
        self._noted = 0
        self._trained = 0
        """Batches that the last step trained on, but for steps at the end."""
        self._forward: list[int] = []
        """What autograd had noted when each batch was handed out, until the first boundary."""
        self._newest: deque[list[weakref.ref[torch.Tensor]]] = deque(maxlen=_MOST)

    @property
    def usual(self) -> int | None:
        """Batches that a step takes; None if that is not known yet."""
        return self._counts[1] if len(self._counts) > 1 else None

    @property
    def is_uncertain(self) -> bool:
        """Only one boundary was seen, before which several batches were taken: they may be one step's, or held."""
        return not self.settled and len(self._counts) == 1 and self._counts[0] > 1

    def say(self, ahead: int) -> None:
        self.ahead, self.settled, self.given = ahead, True, True

    def note(self, batch: Any) -> None:
        """A batch was handed out."""
        if self.settled and not self.ahead:
            return
        if not self.settled and not self._counts and len(self._forward) < _MOST:
            self._forward.append(_noted_by_autograd())
        if self.ahead or self._noted < _MOST:
            self._noted += 1
            self._newest.append([weakref.ref(tensor) for tensor in _tensors(batch)])

    def at_boundary(self, new: int, outstanding: int, ended: bool, at_end: bool) -> int:
        """How many of the `outstanding` batches the loop holds now. It took `new` ones since the last boundary; `ended`
        says whether its iterator has come to its end, `at_end` whether that gives nothing any more."""
        if not self.settled:
            self._learn(new, at_end)
        if not self.ahead:
            return 0
        if ended:
            return self.of_ended(outstanding)
        held = min(self.ahead, outstanding)
        self._trained = outstanding - held
        return held

    def of_ended(self, outstanding: int) -> int:
        """The same, where nothing more is to be taken: less is held at each boundary."""
        return max(0, outstanding - (self._trained or outstanding)) if self.ahead else 0

    def _learn(self, new: int, at_end: bool) -> None:
        before, self._forward = [*self._forward, _noted_by_autograd()], []
        trained = sum(one != other for one, other in itertools.pairwise(before))
        if trained and len(before) == new + 1:
            self.ahead, self.settled, self._counts = new - trained, True, [new, trained]
            return
        first = self._counts[0] if self._counts else new
        if new == 0 and (len(self._counts) < 2 or not at_end):
            return  # a step of another loop
        self._counts.append(new)
        more = first - self._counts[1] if len(self._counts) > 1 else 0
        if len(self._counts) == 2:
            self.settled = more <= 0
            self.ahead = more if more > 0 and not at_end else 0  # at its end it may be the rest of an accumulation
        elif len(self._counts) > 2:  # where nothing is left to be taken, what is trained on was held
            self.settled, self.ahead = True, more if new in (0, self._counts[1]) else 0

    def kept_by_script(self, tensors: list[torch.Tensor]) -> bool:
        """Whether the batches that are held are among these."""
        newest = list(self._newest)[-self.ahead :]
        if not self.ahead or len(newest) < self.ahead:
            return False
        parts = [[ref() for ref in batch] for batch in newest]
        return all(batch and all(_is_among(part, tensors) for part in batch) for batch in parts)

    def state(self) -> dict[str, Any]:
        return {
            "ahead": self.ahead,
            "settled": self.settled,
            "given": self.given,
            "counts": self._counts,
            "trained": self._trained,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        if not self.given:
            self.ahead, self.settled = int(state["ahead"]), bool(state["settled"])
            self._counts = [int(count) for count in state["counts"]]
        self._trained = int(state["trained"])


def _noted_by_autograd() -> int:
    """It grows with each operation that has a gradient; backward passes and optimizers add nothing."""
    count = getattr(torch._C._autograd, "_get_sequence_nr", None)
    if count is not None:
        return int(count())
    with torch.enable_grad():
        node: Any = (torch.zeros((), requires_grad=True) + 0).grad_fn
    return int(node._sequence_nr()) - next(_looks)


def _tensors(batch: Any, depth: int = 3) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif depth and isinstance(batch, (list, tuple, dict)):
        for item in batch.values() if isinstance(batch, dict) else batch:
            yield from _tensors(item, depth - 1)


def _is_among(part: torch.Tensor | None, tensors: list[torch.Tensor]) -> bool:
    if part is None:
        return False
    return any(one is part or _is_equal(one, part) for one in tensors)


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and one.device.type == "cpu" and bool(torch.equal(one, other))
