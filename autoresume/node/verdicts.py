"""Whether another life follows: here, in another job, or not at all.

Law: pure; of why a life ended, the run's record of its lives, and what the cluster says, it makes a verdict.
The rules, in this order (tests/node/verdicts/*.txt has a file for each situation):

    finished                                    nothing follows
    the user cancelled the job, or asked to stop    nothing follows, whatever the reason of the end
    Slurm requeues the job by itself            nothing is asked for: never both
    the same Python error at the same step twice    nothing follows: no retry mends it
    failed before the run's first step          nothing follows; where it has trained before, the budget decides
    no new checkpoint in so many lives          nothing follows
    the cause's budget is used up               nothing follows
    otherwise                                   a restart here where the job goes on, else a requeue

A node in whose ranks two lives came to a bad end within a day is left out: a job that needs it is requeued.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autoresume.errors import UsageError
from autoresume.node.causes import Cause


class Kind(enum.Enum):
    NOTHING = "nothing follows"
    RESTART = "restart here"
    REQUEUE = "requeue"


@dataclass(frozen=True)
class Verdict:
    kind: Kind
    why: str
    exclude: tuple[str, ...] = ()
    """Nodes that the next life should not run on."""
    hopeless: bool = False
    """Nothing follows, since another life would be of no use."""
    by_slurm: bool = False
    """Nothing is to be done, since Slurm itself runs the job again."""
    asked_for: bool = False
    """Nothing follows, since the run's user wants it so."""


BUDGETS: Mapping[Cause, int | None] = {
    Cause.PREEMPTED: None,
    Cause.TIME_LIMIT: None,
    Cause.SIGNAL: None,
    Cause.REQUEUED: None,
    Cause.NODE: 20,
    Cause.COMMUNICATION: 10,
    Cause.KILLED: 5,
    Cause.HANG: 3,
    Cause.MEMORY: 2,
    Cause.ERROR: 3,
    Cause.START: 2,
    Cause.UNKNOWN: 3,
}
"""How many lives may end so within a day and be followed by another; None: any number."""

FINAL = {Cause.FINISHED, Cause.CANCELLED, Cause.STOPPED}
GIVEN_BACK = {Cause.PREEMPTED, Cause.TIME_LIMIT, Cause.SIGNAL, Cause.REQUEUED}
"""After these the job's time is over: a restart here is out of the question."""
BLAMES_ITS_NODE = {Cause.NODE, Cause.KILLED, Cause.MEMORY, Cause.COMMUNICATION, Cause.HANG}
DAY_SECONDS = 86400.0
LIVES_WITHOUT_PROGRESS = 5
LIVES_PER_BAD_NODE = 2


@dataclass(frozen=True)
class Past:
    """One life of the run, as its record tells it."""

    cause: Cause
    began_step: int | None
    """Of the checkpoint that it began from; 0 from scratch; None if it did not come so far."""
    step: int | None = None
    ended: float = 0.0
    node: str | None = None
    error: str | None = None
    number: int | None = None
    """Of its incarnation; None if it ended before it claimed one."""


@dataclass(frozen=True)
class Now:
    """What is known when a round is over."""

    lives: Sequence[Past]
    """Oldest first; the one that has just ended is the last, unless it was stopped before it claimed a number."""
    cause: Cause
    time: float
    committed_step: int
    """Of the newest committed checkpoint; 0 if there is none."""
    stepped: bool = True
    """Some rank reached a step boundary in this round."""
    stop_wanted: bool = False
    cancelled: bool = False
    requeued_by_slurm: bool = False
    restarts_here: bool = False
    """The job's time goes on, and enough nodes are there."""
    nodes: Sequence[str] = ()
    """Of this job; the launchers meet on the first, which no restart here can do without."""
    spares: int = 0
    """How many of the others it can do without."""
    can_requeue: bool = False
    budgets: Mapping[Cause, int | None] = field(default_factory=dict)
    lives_without_progress: int = LIVES_WITHOUT_PROGRESS


def decide(now: Now) -> Verdict:
    """What follows."""
    if now.cause is Cause.FINISHED:
        return Verdict(Kind.NOTHING, "the run is finished")
    if now.cancelled or now.cause is Cause.CANCELLED:
        return Verdict(Kind.NOTHING, "its user cancelled the job", asked_for=True)
    if now.stop_wanted or now.cause is Cause.STOPPED:
        return Verdict(Kind.NOTHING, "its user asked it to stop; the same command goes on with it", asked_for=True)
    exclude = bad_nodes(now.lives, now.time)
    if now.requeued_by_slurm:
        return Verdict(Kind.NOTHING, "Slurm requeues the job by itself", exclude, by_slurm=True)
    problem = _hopeless(now)
    if problem is not None:
        return Verdict(Kind.NOTHING, problem, exclude, hopeless=True)
    bad = [node for node in now.nodes if node in exclude]
    spared = not bad or (len(bad) <= now.spares and now.nodes[0] not in bad)
    if now.restarts_here and now.cause not in GIVEN_BACK and (spared or not now.can_requeue):
        return Verdict(Kind.RESTART, f"{now.cause.value}: the ranks are started again in this job", exclude)
    if now.can_requeue:
        return Verdict(Kind.REQUEUE, f"{now.cause.value}: the job is requeued", exclude)
    return Verdict(Kind.NOTHING, f"{now.cause.value}; the same command goes on from the last checkpoint", exclude)


def _hopeless(now: Now) -> str | None:
    """Why another life would be of no use, or None."""
    if now.cause is Cause.LEFT:
        return "the script left before the run was finished, and would do so again; the same command goes on with it"
    budgets = {**BUDGETS, **now.budgets}
    lives, trained = list(now.lives), now.committed_step > 0
    if now.cause in (Cause.ERROR, Cause.START) and not now.stepped and not trained:
        return "it failed before its first step: starting again would not mend that"
    errors = [life for life in lives if life.cause is Cause.ERROR]
    if now.cause is Cause.ERROR and len(errors) > 1:
        before, last = errors[-2:]
        if (before.error, before.step) == (last.error, last.step):
            where = "before its first step" if last.step is None else f"at step {last.step}"
            return f"the same error came twice {where}, so that starting again does not mend it: {last.error}"
    idle = lives[-now.lives_without_progress :]
    began = [life.began_step for life in idle if life.began_step is not None]
    if len(idle) == now.lives_without_progress and now.committed_step <= min(began, default=now.committed_step):
        return (
            f"{len(idle)} lives in a row have brought no checkpoint beyond step {now.committed_step}, so that the run "
            "makes no progress: give it a longer time limit or grace time, or save more often (save_every)"
        )
    count, budget = within_a_day(lives, now.cause, now.time), budgets.get(now.cause)
    if budget is not None and count > budget:
        return f"{count} lives within a day ended so ({now.cause.value}), and {budget} are allowed"
    return None


def within_a_day(lives: Sequence[Past], cause: Cause, now: float) -> int:
    """How many lives ended so, of late."""
    return sum(life.cause is cause and now - life.ended < DAY_SECONDS for life in lives)


def bad_nodes(lives: Sequence[Past], now: float) -> tuple[str, ...]:
    """Nodes that brought two lives to an end within a day, while others trained on elsewhere or were spared."""
    recent = [life for life in lives if now - life.ended < DAY_SECONDS and life.cause in BLAMES_ITS_NODE]
    counts = Counter(life.node for life in recent if life.node)
    return tuple(sorted(node for node, count in counts.items() if count >= LIVES_PER_BAD_NODE))


def parse_budget(word: str) -> tuple[Cause, int | None]:
    """From "error=1" or "preempted=unlimited". Raises UsageError."""
    name, _, count = word.partition("=")
    try:
        cause = Cause(name.replace("-", " ").replace("_", " ").strip())
    except ValueError:
        known = ", ".join(cause.value.replace(" ", "-") for cause in Cause)
        raise UsageError(f"--budget {word}: there is no cause {name!r}; known are {known}") from None
    if count == "unlimited":
        return cause, None
    if not count.isdigit():
        raise UsageError(f"--budget {word}: give a number, e.g. error=1")
    return cause, int(count)
