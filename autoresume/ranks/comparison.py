"""Are numbers the same on all ranks? Asked while training goes on, and answered when all have asked.

Law: asking never waits. A question is put with a name, and questions are answered in the order in which a rank put
them: an answer counts only where all ranks put it under the same name, so that ranks that took part in other things
are never compared. A group of its own: ranks ask at different moments, and a group's collectives must have one order.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

_MOST_OPEN = 16
"""Unanswered ones. Another rank has left its loop long ago."""
_PATIENCE_SECONDS = 1.0
_UNKNOWN = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Answer:
    """`differs` has the numbers of those that are not the same on all ranks."""

    name: str
    differs: np.ndarray


@dataclass(frozen=True)
class _Open:
    name: str
    words: torch.Tensor
    work: dist.Work | None


class Comparison:
    """Of one rank among all that call it with as many numbers."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._open: deque[_Open] = deque()
        self._patient = True

    def ask(self, name: str, numbers: np.ndarray, known: bool = True) -> bool:
        """Put `numbers` beside those of the others; False if nobody would answer. Not `known`: whatever others say."""
        if self._group is None or len(self._open) >= _MOST_OPEN:
            return False
        told = np.concatenate(([zlib.crc32(name.encode())], numbers if known else np.full_like(numbers, _UNKNOWN)))
        # The greatest of a number and of its negative are the same but for the sign if all numbers are. The least
        # number is its own negative, and so below whatever others say.
        words = torch.from_numpy(np.concatenate((told, -told)))
        try:
            work = dist.all_reduce(words, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        except RuntimeError:
            self._group = None  # another rank is gone, which the training will find out by itself
            return False
        self._open.append(_Open(name, words, work))
        return True

    def answers(self) -> list[Answer]:
        """Of the questions that all ranks have put by now."""
        found = []
        while self._open and self._is_there(self._open[0]):
            question = self._open.popleft()
            greatest, least = question.words.numpy().reshape(2, -1)
            least = -least
            if greatest[0] == least[0]:
                found.append(Answer(question.name, greatest[1:] > least[1:]))
        return found

    def settle(self, name: str, numbers: np.ndarray, seconds: float) -> list[Answer]:
        """Ask, and wait for the answer so long; it is the last one where it came. What came before it is told, too."""
        self.ask(name, numbers)
        found, until = self.answers(), time.monotonic() + seconds
        while self._open and time.monotonic() < until:
            time.sleep(0.001)
            found += self.answers()
        return found

    def _is_there(self, question: _Open) -> bool:
        """All ranks asked long ago, as a rule, and nothing is waited for. A little patience keeps those together that
        save in quick succession; it is given up where a rank asks no more."""
        if question.work is None:
            return True
        until = time.monotonic() + (_PATIENCE_SECONDS if self._patient else 0.0)
        while not question.work.is_completed():
            if time.monotonic() >= until:
                self._patient = False
                return False
            time.sleep(0.0005)
        self._patient = True
        try:
            question.work.wait()
        except RuntimeError:
            self._group = None
            self._open.clear()
            return False
        return True
