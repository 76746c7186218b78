"""Streams that offer a state, of which not all bring their items back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset


class Honest(IterableDataset[torch.Tensor]):
    """Its state brings the same items back."""

    def __init__(self, count: int) -> None:
        self.count, self.place = count, 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]

    def __iter__(self) -> Iterator[torch.Tensor]:
        begin, self.place = self.place, 0
        for index in range(begin, self.count):
            self.place = index + 1
            yield torch.tensor([float(index)])
        self.place = 0


class Buffered(Honest):
    """Shuffles through a buffer, of which its state says nothing; its order is the same each time."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        draw, held = random.Random(3), []
        for item in super().__iter__():
            held.append(item)
            if len(held) > 4:
                yield held.pop(draw.randrange(len(held)))
        draw.shuffle(held)
        yield from held


class Late(Honest):
    """The first items that it gives come back: it begins to shuffle later."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        draw, held = random.Random(3), []
        for number, item in enumerate(super().__iter__()):
            held.append(item)
            if number < 10 or len(held) > 4:
                yield held.pop(draw.randrange(len(held)))
        yield from held


class Uncopied(Honest):
    """It can't be copied, and so not tried."""

    def __deepcopy__(self, memory: Any) -> Any:
        raise TypeError("an open connection")
