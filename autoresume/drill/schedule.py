"""Which interruptions, and when. Pure: one seed, one schedule.

Law: moments are places in the training (a step boundary, a forward pass, a failpoint), never times.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autoresume.errors import UsageError

KILLS = ("kill", "kill-rank", "kill-daemon")
"""Without a word: of everything, as a node failure is; of one rank; of the node daemon."""
SIGNALS = {"term": "SIGTERM", "usr1": "SIGUSR1", "limit": "SIGTERM"}
"""With a grace time. `limit` is a time limit: its grace time is short, and the kill comes whether it is done or not."""
ACTIONS = (*KILLS, *SIGNALS)
MOMENTS = ("start", "step", "forward", "evaluation", "save", "restore")
"""Before the restore; at a step boundary; in a step; in an evaluation (a forward pass without gradients); in the middle
of writing a checkpoint; in the middle of restoring one."""
SAVE_POINTS = ("persist.shard_written", "storage.write.before_sync", "commit.before_manifest", "commit.after_manifest")
RANKS_SAVE_POINTS = ("save.begin", "save.copied", "save.sealed")
"""Those that a rank itself comes to."""
RESTORE_POINTS = ("restore.chosen", "restore.read", "restore.done")


@dataclass(frozen=True)
class Interruption:
    action: str
    at: str
    step: int = 0
    """After so many completed steps; for `start` and `restore` it does not count."""
    rank: int = 0
    point: str | None = None
    """Of `save` and `restore`: the failpoint."""

    def words(self) -> str:
        """Such as "kill of rank 1 in step 42"."""
        what = {
            "kill": "kill of everything",
            "kill-rank": f"kill of rank {self.rank}",
            "kill-daemon": "kill of the daemon",
            "term": "SIGTERM",
            "usr1": "SIGUSR1",
            "limit": "time limit",
        }[self.action]
        if self.point is not None:
            what = "kill of whoever comes there"
        where = {
            "start": "in start-up",
            "step": f"after step {self.step}",
            "forward": f"in step {self.step + 1}",
            "evaluation": f"in an evaluation after step {self.step}",
            "save": f"in its first save ({self.point})",
            "restore": f"in a restore ({self.point})",
        }[self.at]
        return f"{what} {where}"


def make(seed: int, kills: int, steps: int, ranks: int, evaluates: bool = False) -> list[Interruption]:
    """`kills` interruptions of a training of so many steps, in the order in which they come: later lives are
    interrupted later. The kinds of moments and actions are dealt out, so that few interruptions already differ."""
    generator = random.Random(seed)  # noqa: S311
    if steps < 2:
        raise UsageError(f"the training makes {steps} steps: a drill needs at least 2 of them")
    places = sorted(generator.randint(1, steps - 1) for _ in range(kills))
    moments = ["step", "forward", "save", *(["evaluation"] if evaluates else []), "start", "restore"]
    first, rest = moments[:2], moments[2:]
    generator.shuffle(first)
    generator.shuffle(rest)
    actions = list(ACTIONS)
    generator.shuffle(actions)
    order = [*first, *rest]
    found = []
    for number, step in enumerate(places):
        at = order[number % len(order)]
        action = actions[(number + number // len(order)) % len(actions)]  # else each comes with one moment only
        rank = generator.randrange(ranks)
        points = {"save": SAVE_POINTS, "restore": RESTORE_POINTS}.get(at)
        point = generator.choice(points) if points else None
        found.append(Interruption("kill" if point else action, at, step, rank, point))
    # The run has nothing to restore before its first step, and an interrupted start-up says nothing.
    if found and found[0].at in ("start", "restore"):
        found[0] = Interruption(found[0].action, "step", found[0].step, found[0].rank)
    return found


def to_json(schedule: Sequence[Interruption]) -> str:
    return json.dumps([asdict(one) for one in schedule], indent=1) + "\n"


def from_json(text: str, source: str = "the schedule") -> list[Interruption]:
    """Raises UsageError."""
    try:
        read = json.loads(text)
        if not isinstance(read, list) or not read:
            raise TypeError("it holds none")
        found = [_checked(one) for one in read]
    except (ValueError, TypeError, KeyError) as error:
        example = json.dumps(asdict(Interruption("term", "step", 12)))
        raise UsageError(f"{source} is no list of interruptions ({error}); one of them is, e.g., {example}") from None
    return found


def _checked(one: dict[str, Any]) -> Interruption:
    made = Interruption(**one)
    if made.action not in ACTIONS or made.at not in MOMENTS:
        raise ValueError(f"{made.action!r} at {made.at!r}; actions: {', '.join(ACTIONS)}; at: {', '.join(MOMENTS)}")
    if (made.at in ("save", "restore")) != (made.point is not None):
        raise ValueError("'point' is the failpoint of a save or restore, and of nothing else")
    if made.point is not None and made.point not in (*SAVE_POINTS, *RANKS_SAVE_POINTS, *RESTORE_POINTS):
        raise ValueError(f"no failpoint is called {made.point!r}")
    return made
