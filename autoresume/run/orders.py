"""What all ranks do after a step: nothing, save, stop, or leave; agreed at step boundaries.

Law: with a node daemon the order comes from the fence in shared memory, without one from a reduction that was launched
at an earlier boundary: nobody waits for anybody at a boundary. Who wishes for what is found here (a signal, a newer
life, the user's `autoresume stop`, the interval between saves); what follows from an order is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from autoresume.base.spans import span
from autoresume.errors import AgreementError, StaleIncarnation
from autoresume.handoff.fence import Order, Phase, RankFence
from autoresume.handoff.signals import SignalTrap
from autoresume.ranks.agreement import LaggedOrders, Ranks
from autoresume.run.cadence import Cadence
from autoresume.run.saves import Saves

_LOOK_SECONDS = 1.0
_REST_SECONDS = 0.002


class Orders:
    """`fence` is None without a daemon. `stale` and `stop_reason` are set by the heartbeat, in its thread: why another
    life has overtaken this one; why the run's user wants it to stop."""

    def __init__(self, ranks: Ranks, trap: SignalTrap, cadence: Cadence, saves: Saves, fence: RankFence | None) -> None:
        self.fence = fence
        self.stale: str | None = None
        self.stop_reason: str | None = None
        self.last_step = 0
        self._ranks, self._trap, self._cadence, self._saves = ranks, trap, cadence, saves
        self._lagged = LaggedOrders(ranks)
        self._step_seconds = 1.0
        self._last_boundary: float | None = None
        self._next_look = 0.0

    def at_boundary(self, step: int) -> Order:
        """What all ranks do after `step`. A few microseconds when it is nothing.

        Raises StaleIncarnation when another life has overtaken this one, AgreementError when nobody can be asked.
        """
        now = time.monotonic()
        if self._last_boundary is not None:
            self._step_seconds += 0.2 * (now - self._last_boundary - self._step_seconds)
        self._last_boundary, self.last_step = now, step
        self._saves.saver.at_boundary()
        self._trap.install()  # a framework may have put its own handlers on since
        stale = self.stale or self._saves.stale
        if stale is not None:
            raise StaleIncarnation(stale)
        wish = self._wish(now)
        if self.fence is not None and now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._check_daemon()
        with span("agreement"):
            if self.fence is not None:
                if wish:
                    self.fence.request(wish)
                order = self.fence.at_boundary(step)
            else:
                if wish:
                    self._lagged.request(wish)
                order = self._lagged.at_boundary(step, self._step_seconds)
        if order is Order.NOTHING and self._cadence.due_by_step(step):
            order = Order.SAVE
        return order

    def _wish(self, now: float) -> Order:
        """What this rank wants."""
        if self._trap.first is not None or self.stop_reason is not None:
            return Order.STOP
        if self._ranks.rank == 0 and self._cadence.due_by_time(now) and self._last_save_is_durable(now):
            return Order.SAVE
        return Order.NOTHING

    def _last_save_is_durable(self, now: float) -> bool:
        """False where the interval is ours to choose, and the last save has yet to become durable, or took long."""
        if not self._cadence.is_auto:
            return True
        if not self._saves.saver.sink.idle():
            return False
        self._saves.note_outcomes()
        return self._cadence.due_by_time(now)

    def _check_daemon(self) -> None:
        if self._saves.saver.sink.alive():
            return
        if self._ranks.world_size > 1:
            raise AgreementError(
                "the node daemon is gone, and with it the ranks' way to agree on a step; start the same command again, "
                "and the run goes on from its last checkpoint"
            )
        self._saves.saver.fall_back("the node daemon is gone; this rank saves by itself from now on")
        self.fence = None

    def wait_for_all_ranks(self, step: int) -> tuple[Order, int]:
        """Wait until all ranks have left their loops; or an order meanwhile, with the step that it names."""
        self._saves.saver.finish_handover()
        if self.fence is not None:
            return wait_at_fence(self.fence, self._saves.saver.sink.alive, step)
        while True:
            order, done = self._lagged.after_loop(self._step_seconds)
            if order is not Order.NOTHING or done:
                return order, step
            time.sleep(_REST_SECONDS)

    def progress(self) -> dict[str, Any]:
        """For `autoresume status`: where the training is."""
        now, cadence = time.monotonic(), self._cadence
        return {
            "time": time.time(),
            "step": self.last_step,
            "step_seconds": round(self._step_seconds, 4) if self._last_boundary is not None else None,
            "next_save": cadence.next_in_words(self.last_step, now),
            "save_cost_seconds": cadence.cost_seconds,
            "save_durable_seconds": cadence.durable_seconds,
            "failure_seconds": cadence.failure_seconds if cadence.is_auto else None,
            "save_every_seconds": None if cadence.steps is not None else cadence.interval_seconds,
        }


def wait_at_fence(fence: RankFence, daemon_lives: Callable[[], bool], step: int) -> tuple[Order, int]:
    """The same for a rank whose daemon holds a fence. Raises AgreementError when the daemon is gone."""
    fence.publish(step, Phase.LEFT)
    while True:
        closed = fence.closed()  # looked at first: the word that stands after it is the last one
        order = fence.after_loop(step)
        if order is not Order.NOTHING:
            return order, fence.target()
        if closed:
            return Order.NOTHING, step
        if not daemon_lives():
            raise AgreementError("the node daemon is gone")
        time.sleep(_REST_SECONDS)
