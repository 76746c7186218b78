"""After a round, or a life without a daemon: the run's record, what the cluster says, and the brain's verdict.

Law: reads the record, asks the pure brain, writes down what follows. Whoever calls it carries the verdict out.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoresume.checkpoint import incarnation, requests
from autoresume.checkpoint.discover import newest_step
from autoresume.errors import AutoresumeError
from autoresume.format import names
from autoresume.node import brain
from autoresume.node.brain import Cause, Verdict
from autoresume.node.cluster import Notice
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")

_MOST_STARTS = 100


def conclude_life(
    run_folder: Path | None,
    cause: Cause,
    notice: Notice,
    *,
    number: int | None,
    why: str = "",
    stepped: bool,
    stop_wanted: bool = False,
    restarts_here: bool = False,
    nodes: Sequence[str] = (),
    spares: int = 0,
    can_requeue: bool = False,
    budgets: Mapping[Cause, int | None] | None = None,
) -> Verdict:
    """What follows the life that has just ended by `cause`; written into its record as well.

    `number` is its incarnation's; one that ended before it claimed any, `why`, is noted beside them if it failed.
    """
    storage = LocalStorage(run_folder) if run_folder is not None else None
    lives, committed, asked = list[brain.Past](), 0, False
    if storage is not None:
        if number is None and cause not in brain.FINAL | brain.GIVEN_BACK:
            _note_failed_start(storage, cause, why)
        lives, committed = past_lives(storage), newest_step(storage)
        lives = [dataclasses.replace(life, cause=cause) if life.number == number else life for life in lives]
        # What was asked of an earlier life is void; a life that has claimed a number has removed it.
        asked = requests.stop_requested(storage, incarnation.this_process()[1] if number is None else 0.0) is not None
    verdict = brain.decide(
        brain.Now(
            lives=lives,
            cause=cause,
            time=time.time(),
            committed_step=committed,
            stepped=stepped,
            stop_wanted=stop_wanted or asked,
            cancelled=notice.cancelled,
            requeued_by_slurm=notice.requeued,
            restarts_here=restarts_here,
            nodes=nodes,
            spares=spares,
            can_requeue=can_requeue,
            budgets=budgets or {},
        )
    )
    if storage is not None and number is not None:
        _note(storage, number, Cause.STOPPED if asked and cause is Cause.SIGNAL else cause, verdict)
    return verdict


def past_lives(storage: LocalStorage) -> list[brain.Past]:
    """All lives of the run, oldest first, with those that failed before they claimed a number."""
    lives = [
        brain.Past(_cause(start.get("cause")), None, ended=float(start["time"])) for start in _failed_starts(storage)
    ]
    for record in incarnation.history(storage):
        ended: dict[str, Any] = record.ended or {}
        lives.append(
            brain.Past(
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
