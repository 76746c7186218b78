"""One step for all ranks of a node to act at, agreed in shared memory without a collective.

Law: a rank publishes its step, then reads the fence; the daemon writes a proposed step, then reads
the ranks' steps. Between a side's write and its read lies a full memory barrier, so either the rank
sees the proposal or the daemon sees that the rank is there already (Dekker's argument):

    rank, at boundary n                     daemon
    1  step[rank] := n                      1  fence := proposed(S), S > every step
    2  read fence                           2  barrier on every core
       if proposed(n): wait until           3  read all steps; one is >= S: fence := none, try a later S
       it is confirmed or withdrawn            otherwise: fence := confirmed(S)
    3  if confirmed(n): act

A rank that acts at S therefore knows that no rank has passed S without seeing the fence, and says that it
has acted; the fence is not used again before all have. The daemon
makes the barrier for both sides (membarrier(2), which interrupts every core), so that a rank's
boundary is two plain memory accesses. A rank that has left its loop obeys an order for a later step where
it stands; once all have left, nothing is proposed any more.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import os
import platform
import time
from pathlib import Path

_WORDS_PER_RANK = 8
_HEADER_WORDS = 8
_MEMBARRIER = {"x86_64": 324, "aarch64": 283}.get(platform.machine())
_MEMBARRIER_CMD_GLOBAL = 1


class Order(enum.IntEnum):
    """What the ranks do at the fence."""

    NOTHING = 0
    SAVE = 1
    STOP = 2
    """Save and leave."""
    LEAVE = 3
    """Leave without saving: there is not time enough, or saving can't be finished."""


class _State(enum.IntEnum):
    NONE = 0
    PROPOSED = 1
    CONFIRMED = 2


class Phase(enum.IntEnum):
    STARTING = 0
    TRAINING = 1
    LEFT = 2


def _pack(step: int, order: Order, state: _State) -> int:
    return (step << 8) | (order << 4) | state


def _unpack(word: int) -> tuple[int, Order, _State]:
    return word >> 8, Order((word >> 4) & 0xF), _State(word & 0xF)


class _Shared:
    def __init__(self, path: Path, create: int | None) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | (0 if create is None else os.O_CREAT | os.O_EXCL)
        descriptor = os.open(path, flags, 0o600)
        try:
            if create is not None:
                os.ftruncate(descriptor, 8 * (_HEADER_WORDS + _WORDS_PER_RANK * create))
            self._memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self.words = memoryview(self._memory).cast("Q")

    def all_left(self) -> bool:
        """True when every rank of this node has left its loop."""
        return all(
            self.words[slot + 1] == Phase.LEFT for slot in range(_HEADER_WORDS, len(self.words), _WORDS_PER_RANK)
        )

    def close(self) -> None:
        self.words.release()
        self._memory.close()


class RankFence(_Shared):
    """A rank's side. Offsets in words: 0 the fence, 1 the daemon's heartbeat in nanoseconds."""

    def __init__(self, path: Path, local_rank: int) -> None:
        super().__init__(path, None)
        self._slot = _HEADER_WORDS + _WORDS_PER_RANK * local_rank
        self._acted = -1

    def publish(self, step: int, phase: Phase = Phase.TRAINING) -> None:
        self.words[self._slot] = step + 1
        self.words[self._slot + 1] = phase

    def wish(self, order: Order) -> None:
        """Ask the daemon for an order, for example because a signal reached this rank alone."""
        if order > self.words[self._slot + 2]:
            self.words[self._slot + 2] = order

    def at(self, step: int, patience_seconds: float = 10.0) -> Order:
        """The boundary after `step`: publish it and learn what to do here. A few microseconds."""
        self.words[self._slot] = step + 1
        word = self.words[0]
        if not word:
            return Order.NOTHING
        where, order, state = _unpack(word)
        if where != step or step == self._acted:
            return Order.NOTHING
        deadline = time.monotonic() + patience_seconds
        while state is _State.PROPOSED and time.monotonic() < deadline:
            time.sleep(0.0005)
            where, order, state = _unpack(self.words[0])
            if where != step:
                return Order.NOTHING
        if state is not _State.CONFIRMED:
            return Order.NOTHING
        self._act(step, order)
        return order

    def at_rest(self, step: int, patience_seconds: float = 10.0) -> Order:
        """For a rank that has left its loop after `step`: an order for a step that the others reach later.

        What is proposed is waited for: after all have left, the last word holds for all of them.
        """
        deadline = time.monotonic() + patience_seconds
        where, order, state = _unpack(self.words[0])
        while state is _State.PROPOSED and time.monotonic() < deadline:
            time.sleep(0.0005)
            where, order, state = _unpack(self.words[0])
        if state is not _State.CONFIRMED or where <= step or where == self._acted:
            return Order.NOTHING
        self._act(where, order)
        return order

    def _act(self, where: int, order: Order) -> None:
        self._acted = where
        if self.words[self._slot + 2] <= order:
            self.words[self._slot + 2] = Order.NOTHING  # what was wished for has come
        self.words[self._slot + 3] = where + 1  # the daemon may use the fence again when all have said so

    def target(self) -> int:
        """The step that the fence names."""
        return _unpack(self.words[0])[0]

    def daemon_beat(self) -> float:
        """Monotonic seconds of the daemon's last heartbeat."""
        return self.words[1] / 1e9


class DaemonFence(_Shared):
    """The daemon's side, for `ranks` local ranks. Creates the file."""

    def __init__(self, path: Path, ranks: int) -> None:
        super().__init__(path, ranks)
        self.ranks = ranks

    def reset(self) -> None:
        """Before new ranks start: forget the old ones."""
        for index in range(len(self.words)):
            self.words[index] = 0
        self.beat()

    def beat(self) -> None:
        self.words[1] = time.monotonic_ns()

    def steps(self) -> list[int | None]:
        """Each rank's last boundary; None before its first."""
        slots = (_HEADER_WORDS + _WORDS_PER_RANK * rank for rank in range(self.ranks))
        return [None if self.words[slot] == 0 else self.words[slot] - 1 for slot in slots]

    def phases(self) -> list[Phase]:
        return [Phase(self.words[_HEADER_WORDS + _WORDS_PER_RANK * rank + 1]) for rank in range(self.ranks)]

    def wishes(self) -> Order:
        """The strongest wish of any rank."""
        return Order(max(self.words[_HEADER_WORDS + _WORDS_PER_RANK * rank + 2] for rank in range(self.ranks)))

    def forget_wishes(self) -> None:
        for rank in range(self.ranks):
            self.words[_HEADER_WORDS + _WORDS_PER_RANK * rank + 2] = 0

    def settled(self) -> bool:
        """False while a rank has yet to obey the order that stands."""
        where, _, state = _unpack(self.words[0])
        acted = (self.words[_HEADER_WORDS + _WORDS_PER_RANK * rank + 3] for rank in range(self.ranks))
        return state is not _State.CONFIRMED or all(step > where for step in acted)

    def propose(self, ahead: int, order: Order) -> int | None:
        """Fix `order` for a step `ahead` (>= 1) of every rank; that step, or None if a rank was faster.

        Every rank must have reached its first boundary, or left, and have obeyed the last order. Refused
        proposals are withdrawn.
        """
        steps = [step for step in self.steps() if step is not None]
        if len(steps) < self.ranks or not self.settled():
            return None
        target = max(steps) + ahead
        self.words[0] = _pack(target, order, _State.PROPOSED)
        barrier()
        if any(step is not None and step >= target for step in self.steps()) or self.all_left():
            # Somebody got there before it could be confirmed, and may not have seen the proposal; or nobody will.
            self.words[0] = 0
            return None
        self.words[0] = _pack(target, order, _State.CONFIRMED)
        return target

    def withdraw(self) -> None:
        self.words[0] = 0


def barrier() -> None:
    """A full memory barrier on every core of the machine, for all processes (see the module's law)."""
    if _MEMBARRIER is not None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(_MEMBARRIER, _MEMBARRIER_CMD_GLOBAL, 0, 0) == 0:
            return
    # Without the system call: far longer than any store stays in a core's buffer.
    time.sleep(0.05)
