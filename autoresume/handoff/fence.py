"""One step for all ranks to act at, agreed in shared memory without a collective.

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
has acted; the fence is not used again before all have. A rank waits for the word as long as the daemon
lives: one that lost patience could pass a step at which the others act. With several nodes each daemon
offers the same S to its own ranks, and one of them confirms when all have accepted (node/team.py).

The daemon makes the barrier for both sides (membarrier(2), which interrupts every core), so that a rank's
boundary is two plain memory accesses. A rank that has left its loop obeys an order for a later step where
it stands. When all ranks of all nodes have left and obeyed, the daemon closes the fence: nothing is
proposed any more, and the ranks may end.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from autoresume.errors import AgreementError

_WORDS_PER_RANK = 8
_HEADER_WORDS = 8
_MEMBARRIER = {"x86_64": 324, "aarch64": 283}.get(platform.machine())
_MEMBARRIER_CMD_GLOBAL = 1
_FENCE, _BEAT, _CLOSED = 0, 1, 2
_LOOK_SECONDS = 0.5
"""How often a waiting rank looks whether the daemon still lives."""


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

    def close(self) -> None:
        self.words.release()
        self._memory.close()


class RankFence(_Shared):
    """A rank's side. Words of the header: the fence, the daemon's heartbeat in nanoseconds, closed or not."""

    def __init__(self, path: Path, local_rank: int, daemon_lives: Callable[[], bool] = lambda: True) -> None:
        super().__init__(path, None)
        self._slot = _HEADER_WORDS + _WORDS_PER_RANK * local_rank
        self._acted = -1
        self._daemon_lives = daemon_lives

    def publish(self, step: int, phase: Phase = Phase.TRAINING) -> None:
        self.words[self._slot] = step + 1
        self.words[self._slot + 1] = phase

    def request(self, order: Order) -> None:
        """Ask the daemon for an order, for example because a signal reached this rank alone."""
        if order > self.words[self._slot + 2]:
            self.words[self._slot + 2] = order

    def at_boundary(self, step: int) -> Order:
        """The boundary after `step`: publish it and learn what to do here. A few microseconds.

        Raises AgreementError if the daemon died while it had this very step proposed.
        """
        self.words[self._slot] = step + 1
        if not self.words[_FENCE]:
            return Order.NOTHING
        where, order, state = _unpack(self.words[_FENCE])
        if where != step or step == self._acted:
            return Order.NOTHING
        if state is _State.PROPOSED:
            where, order, state = self._decided(step)
        if state is not _State.CONFIRMED or where != step:
            return Order.NOTHING
        self._act(step, order)
        return order

    def after_loop(self, step: int) -> Order:
        """For a rank that has left its loop after `step`: an order for a step that the others reach later."""
        where, order, state = _unpack(self.words[_FENCE])
        if state is not _State.CONFIRMED or where <= step or where == self._acted:
            return Order.NOTHING
        self._act(where, order)
        return order

    def _decided(self, step: int) -> tuple[int, Order, _State]:
        look = time.monotonic() + _LOOK_SECONDS
        while True:
            where, order, state = _unpack(self.words[_FENCE])
            if state is not _State.PROPOSED or where != step:
                return where, order, state
            if time.monotonic() > look:
                look = time.monotonic() + _LOOK_SECONDS
                if not self._daemon_lives():
                    raise AgreementError(
                        f"the node daemon died while it had all ranks stop at step {step}; start the same command "
                        "again, and the run goes on from its last checkpoint"
                    )
            time.sleep(0.0005)

    def _act(self, where: int, order: Order) -> None:
        self._acted = where
        if self.words[self._slot + 2] <= order:
            self.words[self._slot + 2] = Order.NOTHING  # what was wished for has come
        self.words[self._slot + 3] = where + 1  # the daemon may use the fence again when all have said so

    def target(self) -> int:
        """The step that the fence names."""
        return _unpack(self.words[_FENCE])[0]

    def closed(self) -> bool:
        """True when all ranks have left and obeyed: no order comes any more."""
        return bool(self.words[_CLOSED])

    def daemon_beat(self) -> float:
        """Monotonic seconds of the daemon's last heartbeat."""
        return self.words[_BEAT] / 1e9


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
        self.words[_BEAT] = time.monotonic_ns()

    def steps(self) -> list[int | None]:
        """Each rank's last boundary; None before its first."""
        slots = (_HEADER_WORDS + _WORDS_PER_RANK * rank for rank in range(self.ranks))
        return [None if self.words[slot] == 0 else self.words[slot] - 1 for slot in slots]

    def phases(self) -> list[Phase]:
        return [Phase(self.words[_HEADER_WORDS + _WORDS_PER_RANK * rank + 1]) for rank in range(self.ranks)]

    def requests(self) -> Order:
        """The strongest wish of any rank."""
        return Order(max(self.words[_HEADER_WORDS + _WORDS_PER_RANK * rank + 2] for rank in range(self.ranks)))

    def all_left(self) -> bool:
        """True when every rank of this node has left its loop."""
        return all(phase is Phase.LEFT for phase in self.phases())

    def clear_requests(self) -> None:
        for rank in range(self.ranks):
            self.words[_HEADER_WORDS + _WORDS_PER_RANK * rank + 2] = 0

    def settled(self) -> bool:
        """False while a rank has yet to obey the order that stands."""
        where, _, state = _unpack(self.words[_FENCE])
        acted = (self.words[_HEADER_WORDS + _WORDS_PER_RANK * rank + 3] for rank in range(self.ranks))
        return state is not _State.CONFIRMED or all(step > where for step in acted)

    def offer(self, target: int, order: Order) -> bool:
        """Propose `order` at step `target` to this node's ranks. False: one was faster, and it is withdrawn.

        True: every rank comes to `target` still and waits there; `confirm` or `withdraw` must follow. Every rank
        must have reached its first boundary, or left, and have obeyed the last order.
        """
        if None in self.steps() or not self.settled() or self.words[_CLOSED]:
            return False
        self.words[_FENCE] = _pack(target, order, _State.PROPOSED)
        barrier()
        if any(step is not None and step >= target for step in self.steps()):
            self.withdraw()  # somebody got there before it could be confirmed, and may not have seen the proposal
            return False
        return True

    def confirm(self) -> None:
        """What was offered holds: all ranks act there."""
        where, order, state = _unpack(self.words[_FENCE])
        if state is _State.PROPOSED:
            self.words[_FENCE] = _pack(where, order, _State.CONFIRMED)

    def withdraw(self) -> None:
        """What was offered does not hold; what was confirmed stays."""
        if _unpack(self.words[_FENCE])[2] is _State.PROPOSED:
            self.words[_FENCE] = 0

    def propose(self, ahead: int, order: Order) -> int | None:
        """Fix `order` for a step `ahead` (>= 1) of every rank, where this node has them all; that step, or None."""
        steps = [step for step in self.steps() if step is not None]
        if len(steps) < self.ranks or not self.offer(max(steps) + ahead, order):
            return None
        if self.all_left():
            self.withdraw()  # nobody comes there
            return None
        self.confirm()
        return max(steps) + ahead

    def shut(self) -> None:
        """Close the fence: all ranks everywhere have left and obeyed. Nothing is proposed afterwards."""
        self.words[_CLOSED] = 1


def barrier() -> None:
    """A full memory barrier on every core of the machine, for all processes (see the module's law)."""
    if _MEMBARRIER is not None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(_MEMBARRIER, _MEMBARRIER_CMD_GLOBAL, 0, 0) == 0:
            return
    # Without the system call: far longer than any store stays in a core's buffer.
    time.sleep(0.05)
