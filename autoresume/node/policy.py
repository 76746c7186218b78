"""What the node daemon does, as a pure table.

Law: `step(state, event, now) -> (state, actions)`; no I/O, no clock, no process is known here. Times
are monotonic seconds.

    event                    what happens
    Signalled                a stop is wanted, and there is a deadline from now on; later signals change nothing.
                             A signal that reached a rank alone is told by its wish to stop, and is the same event
    Wished                   a save is wanted
    Tick(ready, idle)        a wanted order is proposed to the ranks (ready: all have trained, none owes obedience;
                             idle: none of them has reached its first one: nothing is lost by killing them)
    Proposed(target)         accepted: nothing more is wanted; refused (None): proposed again, further ahead
    RankDied                 the others can't go on: they are killed after a patience, so that the launcher can
                             start them again, or end
    LifeOver, Greeted        the ranks are all gone, or new ones have come: what held for the old ones is void
    deadline comes near      the ranks are killed; what was sealed is persisted in the time that is left
    LauncherExited(code)     what is sealed is persisted, then the daemon ends
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from autoresume.errors import EXIT_INTERRUPTED
from autoresume.handoff.fence import Order

RANK_DEATH_PATIENCE_SECONDS = 3.0
RESERVE_FRACTION = 0.2
"""Of the grace time: kept for persisting what is sealed after the ranks are killed."""
RESERVE_LEAST_SECONDS = 2.0
MOST_AHEAD = 1 << 20
"""Steps: a loop of nothing but steps does a thousand while the memory barrier lasts."""


class Kind(enum.Enum):
    PROPOSE = "propose"
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
class Wished:
    """A rank asks for a save."""


@dataclass(frozen=True)
class Tick:
    ready: bool
    idle: bool


@dataclass(frozen=True)
class Proposed:
    target: int | None


@dataclass(frozen=True)
class RankDied:
    rank: int


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


Event = Signalled | Wished | Tick | Proposed | RankDied | LifeOver | Greeted | LauncherExited


@dataclass(frozen=True)
class State:
    wanted: Order = Order.NOTHING
    ahead: int = 1
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
        if state.interrupted:
            return state, []
        deadline = now + event.grace_seconds
        reserve = max(RESERVE_LEAST_SECONDS, RESERVE_FRACTION * event.grace_seconds)
        reserve = min(reserve, event.grace_seconds / 2)  # however short it is, the ranks are told first
        kill_at = max(now, min(deadline - reserve, state.kill_at or deadline))
        why = event.why
        return replace(state, wanted=Order.STOP, deadline=deadline, kill_at=kill_at, why=why, killed=False), []
    if isinstance(event, Wished):
        # A stop saves anyway, and nothing may take its place in the fence.
        return (state if state.interrupted else replace(state, wanted=Order.SAVE)), []
    if isinstance(event, Proposed):
        if event.target is None:
            return replace(state, ahead=min(MOST_AHEAD, state.ahead * 2)), []
        return replace(state, wanted=Order.NOTHING, ahead=1), []
    if isinstance(event, RankDied):
        soon = now + RANK_DEATH_PATIENCE_SECONDS
        at = soon if state.kill_at is None else min(soon, state.kill_at)
        return replace(state, wanted=Order.NOTHING, kill_at=at, why=state.why or "a rank died"), []
    if isinstance(event, (LifeOver, Greeted)):
        # The old ranks' orders are void, and nobody may be killed for them; a stop that was asked for is not.
        if state.interrupted:
            return replace(state, wanted=Order.STOP, ahead=1, killed=False), []
        return State(), []
    if isinstance(event, LauncherExited):
        interrupted = event.interrupted or (state.interrupted and not event.finished)
        code = EXIT_INTERRUPTED if interrupted else event.code
        return replace(state, over=True, exit_code=code), [Action(Kind.DRAIN)]
    return _tick(state, event, now)


def _tick(state: State, event: Tick, now: float) -> tuple[State, list[Action]]:
    if state.killed:
        return state, []
    kind = Kind.KILL_ALL if state.interrupted else Kind.KILL_RANKS
    if state.kill_at is not None and now >= state.kill_at:
        why = "the deadline is near" if state.interrupted else state.why
        return replace(state, killed=True), [Action(kind, why=why)]
    if state.interrupted and event.idle:
        return replace(state, killed=True), [Action(kind, why="no rank had begun to train: nothing is lost")]
    if state.wanted and event.ready:
        return state, [Action(Kind.PROPOSE, order=state.wanted, ahead=state.ahead)]
    return state, []
