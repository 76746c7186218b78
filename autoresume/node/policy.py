"""What the daemons of a job do, as a pure table; the first node's daemon asks it.

Law: `step(state, event, now) -> (state, actions)`; no I/O, no clock, no process is known here. Times
are monotonic seconds.

    event                    what happens
    Signalled                a stop is wanted, and there is a deadline from now on; later signals change nothing.
                             A signal that reached a rank alone is told by its wish to stop, and is the same event
    Limit(end, lead)         the job ends at `end`: a stop is wanted `lead` seconds before, as late as is safe
    Wished                   a save is wanted
    Tick(ready, idle, ...)   a wanted order is proposed to the ranks (ready: all have trained, none owes obedience;
                             idle: none of them has reached its first one: nothing is lost by killing them).
                             Without a step for `hang_after` seconds they hang: their stacks are written, they are
                             killed. A stop that would need more than what is left, while an older snapshot is
                             being persisted, leaves the time to that one: the ranks leave without saving
    Proposed(target)         accepted: nothing more is wanted; refused (None): proposed again, further ahead
    RankDied                 the others can't go on: they are killed after a patience, so that the launcher can
                             start them again, or end
    NodeLost                 a node is gone, with all its ranks: the others are killed at once
    LifeOver, Greeted        the ranks are all gone, or new ones have come: what held for the old ones is void
    deadline comes near      the ranks are killed; what was sealed is persisted in the time that is left
    LauncherExited(code)     what is sealed is persisted, then the daemons end, or begin anew (node/verdicts.py)
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

from autoresume.errors import EXIT_INTERRUPTED
from autoresume.handoff.fence import Order

RANK_DEATH_PATIENCE_SECONDS = 3.0
RESERVE_FRACTION = 0.2
"""Of the grace time: kept for persisting what is sealed after the ranks are killed."""
RESERVE_LEAST_SECONDS = 2.0
LIMIT_IS_NEAR = "the job's time limit is near"
LIMIT_RESERVE_SECONDS = 10.0
STACKS_SECONDS = 2.0
"""From asking hanging ranks for their stacks until they are killed."""
MOST_AHEAD = 1 << 20
"""Steps: a loop of nothing but steps does a thousand while the memory barrier lasts."""


class Kind(enum.Enum):
    PROPOSE = "propose"
    DUMP = "dump stacks"
    KILL_RANKS = "kill ranks"
    KILL_ALL = "kill all"
    DRAIN = "drain"


@dataclass(frozen=True)
class Action:
    kind: Kind
    order: Order = Order.NOTHING
    ahead: int = 0
    why: str = ""


@dataclass(frozen=True)
class Signalled:
    why: str
    grace_seconds: float


@dataclass(frozen=True)
class Limit:
    """When the job is ended by its time limit, and how long before that it has to stop; None: no limit."""

    end: float | None
    lead_seconds: float


@dataclass(frozen=True)
class Wished:
    """A rank asks for a save."""


@dataclass(frozen=True)
class Tick:
    ready: bool
    idle: bool
    silent_seconds: float = 0.0
    """Since any rank reached a boundary, or, before the first one, since the ranks greeted."""
    hang_after: float = math.inf
    cost_seconds: float = 0.0
    """What a save takes until it is committed, measured."""
    busy: bool = False
    """A sealed snapshot is being persisted."""


@dataclass(frozen=True)
class Proposed:
    target: int | None


@dataclass(frozen=True)
class RankDied:
    rank: int


@dataclass(frozen=True)
class NodeLost:
    node: int
    why: str


@dataclass(frozen=True)
class LifeOver:
    """All ranks that had greeted are gone; the launcher may start new ones."""


@dataclass(frozen=True)
class Greeted:
    """New ranks have started."""


@dataclass(frozen=True)
class LauncherExited:
    code: int
    finished: bool = False
    interrupted: bool = False
    """What every rank said of its end; the launcher's exit code does not tell."""


Event = Signalled | Limit | Wished | Tick | Proposed | RankDied | NodeLost | LifeOver | Greeted | LauncherExited


@dataclass(frozen=True)
class State:
    wanted: Order = Order.NOTHING
    ahead: int = 1
    proposing: Order = Order.NOTHING
    """A proposal that is on its way; its answer is waited for."""
    limit: Limit | None = None
    hung: bool = False
    dying: bool = False
    """They can't go on: when they are killed does not depend on the deadline alone."""
    deadline: float | None = None
    """When this process is killed by somebody else."""
    kill_at: float | None = None
    """When we kill the ranks."""
    why: str = ""
    killed: bool = False
    over: bool = False
    exit_code: int | None = None

    @property
    def interrupted(self) -> bool:
        return self.deadline is not None


def step(state: State, event: Event, now: float) -> tuple[State, list[Action]]:
    """The next state, and what is to be done now, in order."""
    if state.over:
        return state, []
    if isinstance(event, Signalled):
        return _signalled(state, event, now), []
    if isinstance(event, Limit):
        return _limited(state, event, now), []
    if isinstance(event, Wished):
        # A stop saves anyway, and nothing may take its place in the fence.
        return (state if state.interrupted else replace(state, wanted=Order.SAVE)), []
    if isinstance(event, Proposed):
        if event.target is None:
            return replace(state, proposing=Order.NOTHING, ahead=min(MOST_AHEAD, state.ahead * 2)), []
        wanted = Order.NOTHING if state.proposing >= state.wanted else state.wanted  # more may be wanted since
        return replace(state, wanted=wanted, proposing=Order.NOTHING, ahead=1), []
    if isinstance(event, RankDied):
        soon = now + RANK_DEATH_PATIENCE_SECONDS
        at = soon if state.kill_at is None else min(soon, state.kill_at)
        return replace(state, wanted=Order.NOTHING, kill_at=at, dying=True, why=state.why or "a rank died"), []
    if isinstance(event, NodeLost):
        if state.killed:
            return state, []
        why = state.why or f"node {event.node} is lost: {event.why}"
        kill = [] if state.killed else [Action(_killing(state), why=why)]
        return replace(state, wanted=Order.NOTHING, killed=True, why=why), kill
    if isinstance(event, (LifeOver, Greeted)):
        # The old ranks' orders are void, and nobody may be killed for them; a stop that was asked for is not.
        if state.interrupted:
            state = replace(state, wanted=Order.STOP, ahead=1, proposing=Order.NOTHING)
            return replace(state, killed=False, hung=False, dying=False), []
        return State(limit=state.limit), []
    if isinstance(event, LauncherExited):
        interrupted = event.interrupted or (state.interrupted and not event.finished)
        code = EXIT_INTERRUPTED if interrupted else event.code
        return replace(state, over=True, exit_code=code), [Action(Kind.DRAIN)]
    return _tick(state, event, now)


def lead_seconds(cost_seconds: float | None, step_seconds: float) -> float:
    """How long before its time limit a job stops: twice what a save costs, two steps, and a reserve.

    As long as no save was measured (None), a minute and a half stands for it.
    """
    return LIMIT_RESERVE_SECONDS + (90.0 if cost_seconds is None else 2 * cost_seconds) + 2 * step_seconds


def _signalled(state: State, event: Signalled, now: float) -> State:
    if state.interrupted:
        return state
    deadline, kill_at = _times(event.grace_seconds, now)
    kill_at = max(now, min(kill_at, state.kill_at or deadline))
    return replace(state, wanted=Order.STOP, deadline=deadline, kill_at=kill_at, why=event.why, killed=False)


def _times(grace_seconds: float, now: float) -> tuple[float, float]:
    """(when we are killed, when we kill the ranks, to persist in the time that is left)"""
    reserve = max(RESERVE_LEAST_SECONDS, RESERVE_FRACTION * grace_seconds)
    reserve = min(reserve, grace_seconds / 2)  # however short it is, the ranks are told first
    return now + grace_seconds, now + grace_seconds - reserve


def _limited(state: State, event: Limit, now: float) -> State:
    """The limit is known, or has changed; if the job is being stopped it is the end of its grace time."""
    if event.end is None:
        return replace(state, limit=None)
    state = replace(state, limit=event)
    if not state.interrupted or state.killed:
        return state
    deadline, kill_at = _times(max(0.0, event.end - now), now)
    if state.dying and state.kill_at is not None:
        kill_at = min(kill_at, state.kill_at)
    return replace(state, deadline=deadline, kill_at=kill_at)


def _killing(state: State) -> Kind:
    return Kind.KILL_ALL if state.interrupted else Kind.KILL_RANKS


def _tick(state: State, event: Tick, now: float) -> tuple[State, list[Action]]:
    limit = state.limit
    if limit is not None and limit.end is not None and not state.interrupted and now >= limit.end - limit.lead_seconds:
        state = _signalled(state, Signalled(LIMIT_IS_NEAR, max(1.0, limit.end - now)), now)
    if state.killed:
        return state, []
    if state.kill_at is not None and now >= state.kill_at:
        why = "the deadline is near" if state.interrupted else state.why
        return replace(state, killed=True), [Action(_killing(state), why=why)]
    if state.interrupted and event.idle:
        return replace(state, killed=True), [Action(_killing(state), why="no rank had begun to train: nothing is lost")]
    if event.silent_seconds > event.hang_after and not state.hung:
        why = f"no rank made a step for {event.silent_seconds:.0f} s: they hang"
        soon = now + STACKS_SECONDS
        at = soon if state.kill_at is None else min(soon, state.kill_at)
        state = replace(state, hung=True, dying=True, wanted=Order.NOTHING, kill_at=at, why=state.why or why)
        return state, [Action(Kind.DUMP, why=why)]
    if state.wanted and event.ready and not state.proposing:
        order = state.wanted
        if order is Order.STOP and event.busy and state.deadline is not None:
            order = Order.LEAVE if now + event.cost_seconds > state.deadline else order
        return replace(state, proposing=order), [Action(Kind.PROPOSE, order=order, ahead=state.ahead)]
    return state, []
