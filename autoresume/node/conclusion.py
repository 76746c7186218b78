"""After a round, or a life without a daemon: the run's record, what the cluster says, and the verdict.

Law: reads the record, asks the pure verdicts.py, writes down what follows. Whoever calls it carries the verdict out.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresume.checkpoint import incarnation, requests
from autoresume.checkpoint.discover import newest_step
from autoresume.errors import AutoresumeError
from autoresume.format import names
from autoresume.node import verdicts
from autoresume.node.causes import Cause
from autoresume.node.cluster import Notice
from autoresume.node.verdicts import Verdict
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")

_MOST_STARTS = 100


@dataclass(frozen=True)
class LifeEnd:
    """What is known of a life that has just ended. `number` is its incarnation's; None if it had not claimed any."""

    cause: Cause
    number: int | None
    stepped: bool
    """Some rank had reached a step boundary."""
    why: str = ""
    stop_wanted: bool = False
    """Its user has interrupted it at the terminal."""


@dataclass(frozen=True)
class Means:
    """What another life could be had by: in this job, or by a requeue."""

    restarts_here: bool = False
    can_requeue: bool = False
    nodes: Sequence[str] = ()
    """Of this job, the first one first."""
    spares: int = 0
    """How many of them it can do without."""
    budgets: Mapping[Cause, int | None] = field(default_factory=dict)


def conclude_life(run_folder: Path | None, end: LifeEnd, notice: Notice, means: Means) -> Verdict:
    """What follows the life that has just ended, by the rules of verdicts.py; written into its record as well.

    One that ended before it claimed a number is noted beside the records, if it failed.
    """
    cause, number = end.cause, end.number
    storage = LocalStorage(run_folder) if run_folder is not None else None
    lives, committed, asked = list[verdicts.Past](), 0, False
    if storage is not None:
        if number is None and cause not in verdicts.FINAL | verdicts.GIVEN_BACK:
            _note_failed_start(storage, cause, end.why)
        lives, committed = past_lives(storage), newest_step(storage)
        lives = [dataclasses.replace(life, cause=cause) if life.number == number else life for life in lives]
        # What was asked of an earlier life is void; a life that has claimed a number has removed it.
        asked = requests.stop_requested(storage, incarnation.this_process()[1] if number is None else 0.0) is not None
    verdict = verdicts.decide(
        verdicts.Now(
            lives=lives,
            cause=cause,
            time=time.time(),
            committed_step=committed,
            stepped=end.stepped,
            stop_wanted=end.stop_wanted or asked,
            cancelled=notice.cancelled,
            requeued_by_slurm=notice.requeued,
            restarts_here=means.restarts_here,
            nodes=means.nodes,
            spares=means.spares,
            can_requeue=means.can_requeue,
            budgets=means.budgets,
        )
    )
    if storage is not None and number is not None:
        _note(storage, number, Cause.STOPPED if asked and cause is Cause.SIGNAL else cause, verdict)
    return verdict


def past_lives(storage: LocalStorage) -> list[verdicts.Past]:
    """All lives of the run, oldest first, with those that failed before they claimed a number."""
    lives = [
        verdicts.Past(_cause(start.get("cause")), None, ended=float(start["time"])) for start in _failed_starts(storage)
    ]
    for record in incarnation.history(storage):
        ended: dict[str, Any] = record.ended or {}
        lives.append(
            verdicts.Past(
                cause=_cause(ended.get("cause")),
                began_step=record.began.get("step"),
                step=ended.get("step"),
                ended=float(ended.get("time") or record.began.get("time") or 0.0),
                node=ended.get("node"),
                error=ended.get("error"),
                number=record.number,
            )
        )
    return sorted(lives, key=lambda life: life.ended)


def _cause(word: object) -> Cause:
    try:
        return Cause(word)
    except ValueError:
        return Cause.UNKNOWN


def _failed_starts(storage: LocalStorage) -> list[dict[str, Any]]:
    try:
        found = json.loads(storage.read(names.FAILED_STARTS))
    except (OSError, ValueError):
        return []
    dicts = [start for start in found if isinstance(start, dict)] if isinstance(found, list) else []
    return [start for start in dicts if isinstance(start.get("time"), (int, float))]


def _note_failed_start(storage: LocalStorage, cause: Cause, why: str) -> None:
    starts = [*_failed_starts(storage), {"time": time.time(), "cause": cause.value, "why": why}]
    try:
        storage.write(names.FAILED_STARTS, json.dumps(starts[-_MOST_STARTS:], indent=1).encode() + b"\n")
    except (OSError, AutoresumeError) as error:
        log.warning("a start that failed could not be written down: %s", error)


def _note(storage: LocalStorage, number: int, cause: Cause, verdict: Verdict) -> None:
    """Write what the cluster said of the end, and what follows, into the life's record."""

    def change(record: incarnation.Incarnation) -> None:
        if record.ended is not None:
            record.ended.update(cause=cause.value, then=f"{verdict.kind.value}: {verdict.why}")

    try:
        incarnation.update(storage, number, change)
    except (OSError, AutoresumeError) as error:
        log.warning("what follows could not be written down: %s", error)
