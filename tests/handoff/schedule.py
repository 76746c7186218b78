"""Real code under a scheduler of ours: one access to shared memory at a time, in an order drawn from a seed.

Law: an actor is a thread that runs alone until its next access, and waits there to be chosen. A write
goes into its actor's store buffer, and reaches memory when the scheduler says so, in order. The same
seed gives the same run. Time stands still: waiting is looking again.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

MOST_ACCESSES = 20_000


class Stuck(Exception):
    """The actors go on and on, and come to no end."""


class _Abandoned(BaseException):
    """Ends an actor's thread."""


class _Actor:
    def __init__(self, name: str, play: Callable[[], None], schedule: Schedule) -> None:
        self.name, self.buffer = name, list[tuple[int, int]]()
        self.error: BaseException | None = None
        self.done = False
        self.go = threading.Semaphore(0)
        self._schedule = schedule
        self.thread = threading.Thread(target=self._live, args=(play,), name=name, daemon=True)

    def _live(self, play: Callable[[], None]) -> None:
        try:
            self.pause()
            play()
        except _Abandoned:
            pass
        except BaseException as error:  # told by the scheduler, in the test's thread
            self.error = error
        self.done = True
        self._schedule.paused.release()

    def pause(self) -> None:
        self._schedule.paused.release()
        self.go.acquire()
        if self._schedule.abandoned:
            raise _Abandoned


class _Words:
    """Looks like the memoryview that a fence has, for the actor that runs at the moment."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def __len__(self) -> int:
        return len(self._schedule.memory)

    def __getitem__(self, index: int) -> int:
        actor = self._schedule.turn()
        return next((value for where, value in reversed(actor.buffer) if where == index), self._schedule.memory[index])

    def __setitem__(self, index: int, value: int) -> None:
        self._schedule.turn().buffer.append((index, int(value)))

    def release(self) -> None:
        pass


class Schedule:
    def __init__(self, seed: int, words: int) -> None:
        self.random = random.Random(seed)
        self.memory = [0] * words
        self.words = _Words(self)
        self.actors: list[_Actor] = []
        self.paused = threading.Semaphore(0)
        self.abandoned = False
        self.clock = SimpleNamespace(
            monotonic=lambda: 0.0, monotonic_ns=lambda: 0, sleep=lambda seconds: None, time=lambda: 0.0
        )

    def add(self, name: str, play: Callable[[], None]) -> None:
        self.actors.append(_Actor(name, play, self))

    def turn(self) -> _Actor:
        """Wait for the running actor's turn."""
        actor = next(actor for actor in self.actors if actor.thread is threading.current_thread())
        actor.pause()
        return actor

    def barrier(self) -> None:
        """What membarrier(2) does: every store that was made is seen by all when it returns."""
        self.turn()
        for actor in self.actors:
            while actor.buffer:
                self._flush(actor)

    def no_barrier(self) -> None:
        """A barrier that does nothing."""
        self.turn()

    def _flush(self, actor: _Actor) -> None:
        index, value = actor.buffer.pop(0)
        self.memory[index] = value

    def run(self) -> None:
        """Until all actors came to their ends. Raises what they raised, and Stuck."""
        for actor in self.actors:
            actor.thread.start()
            self.paused.acquire()
        try:
            self._run()
        finally:
            self.abandoned = True
            for actor in self.actors:
                actor.go.release()
                actor.thread.join()
        for actor in self.actors:
            if actor.error is not None:
                raise actor.error

    def _run(self) -> None:
        last: _Actor | None = None
        for _ in range(MOST_ACCESSES):
            full = [actor for actor in self.actors if actor.buffer]
            if full and self.random.random() < 0.2:
                self._flush(self.random.choice(full))
                continue
            ready = [actor for actor in self.actors if not actor.done]
            if not ready:
                return
            # Long stretches of one actor show other races than steady change.
            stay = last in ready and self.random.random() < 0.6
            last = last if stay and last is not None else self.random.choice(ready)
            last.go.release()
            self.paused.acquire()
        raise Stuck(f"no end after {MOST_ACCESSES} accesses: {[a.name for a in self.actors if not a.done]} go on")


def attach(fence: Any, schedule: Schedule) -> Any:
    """Let a fence of the real code use the scheduler's memory."""
    fence.words.release()
    fence.words = schedule.words
    return fence
