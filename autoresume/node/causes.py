"""Why a life ended, of all that its ranks said, or did not say.

Law: pure. What came first counts: errors of communication are echoes of something else, if there is anything else.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Cause(str, enum.Enum):
    """Why a life ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    TIME_LIMIT = "time limit"
    SIGNAL = "signal"
    """A signal to stop whose sender is not known."""
    REQUEUED = "requeued"
    """Somebody requeued the job by hand."""
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    """By `autoresume stop`."""
    NODE = "node failure"
    MEMORY = "out of memory"
    KILLED = "killed"
    ERROR = "error"
    COMMUNICATION = "communication"
    HANG = "hang"
    START = "start"
    """The ranks failed before any of them had claimed the run."""
    LEFT = "left"
    """The script ended by itself before the run was finished."""
    UNKNOWN = "unknown"


_CAUSE_SECONDS = 1.0
"""A rank that is gone without a word within this time of another's error is the cause of that error."""

_COMMUNICATION = re.compile(
    r"NCCL|gloo|DistBackendError|DistNetworkError|DistStoreError|Connection (reset|closed|refused)|Broken pipe"
    r"|AgreementError|ProcessGroup|Socket Timeout|wait timeout|recvValue failed",
    re.IGNORECASE,
)

_MEMORY = re.compile(r"OutOfMemoryError|out of memory|MemoryError|can't allocate memory", re.IGNORECASE)


class Lost(NamedTuple):
    """A node that is gone."""

    number: int
    name: str | None
    """As the batch system calls it, where that is known."""
    why: str


@dataclass(frozen=True)
class Told:
    how: str
    cause: Cause
    step: int | None
    why: str
    node: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


def cause_of_error(why: str) -> Cause:
    """The cause that an exception's text tells of."""
    if _MEMORY.search(why):
        return Cause.MEMORY
    return Cause.COMMUNICATION if _COMMUNICATION.search(why) else Cause.ERROR


def cause_of(reports: Sequence[Mapping[str, Any]], stopping: str | None, hung: bool, lost: Sequence[Lost] = ()) -> Told:
    """Of all that the ranks of all nodes said, or did not say, what came first.

    `stopping` is why a stop was wanted, if one was; `hung`: they were killed since they made no step; `lost` are
    nodes that are gone. No node is named for a mere echo of what happened elsewhere.
    """
    step = max((report["step"] for report in reports if report["step"] is not None), default=None)
    if hung:
        return Told("died", Cause.HANG, step, "no rank made a step any more; their stacks are in stacks/")
    if lost:
        return Told("died", Cause.NODE, step, f"node {lost[0].number} is lost: {lost[0].why}", lost[0].name)
    byes = [{**bye, "node": report["node"]} for report in reports for bye in report["byes"]]
    gone = _first_gone(reports)
    gone_at = math.inf if gone is None else gone["time"]
    failed = min((bye for bye in byes if bye["how"] == "failed"), key=_is_echo, default=None)
    if failed is not None:
        why, at = str(failed["why"]), float(failed["time"])
        cause, nodes = cause_of_error(why), {report["node"] for report in reports}
        if gone_at > at + (_CAUSE_SECONDS if cause is Cause.COMMUNICATION else -_CAUSE_SECONDS):
            # Of several nodes none can be told to have broken a connection.
            node = failed["node"] if cause is not Cause.COMMUNICATION or len(nodes) == 1 else None
            more = {"error": why.partition("\n")[0][:500], "traceback": failed.get("traceback")}
            return Told("failed", cause, step, why, node, more)
    peaceful = [bye for bye in byes if bye["how"] != "failed"]
    if peaceful and gone_at > min(float(bye["time"]) for bye in peaceful) + _CAUSE_SECONDS and failed is None:
        how, why = str(peaceful[0]["how"]), str(peaceful[0]["why"])
        if how == "interrupted":
            return Told(how, Cause.SIGNAL, step, stopping or why)
        causes = {"finished": Cause.FINISHED, "ended": Cause.LEFT}
        return Told(how, causes.get(how, Cause.UNKNOWN), step, why)
    if stopping is not None:
        return Told("interrupted", Cause.SIGNAL, step, stopping)
    if gone is None:
        return Told("died", Cause.UNKNOWN, step, "no rank said how it ended")
    if gone["memory_kills"]:
        return Told("died", Cause.MEMORY, step, f"rank {gone['rank']} was killed for want of memory", gone["node"])
    return Told("died", Cause.KILLED, step, f"rank {gone['rank']} was killed, or crashed", gone["node"])


def _first_gone(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The rank that was gone first without a word: of those at about the same time one killed for want of memory."""
    gone = [
        {**one, "time": one["time"] or math.inf, "node": report["node"], "memory_kills": report.get("memory_kills")}
        for report in reports
        for one in report["silent"]
    ]
    first = min((one["time"] for one in gone), default=math.inf)
    soon = [one for one in gone if one["time"] <= first + _CAUSE_SECONDS]
    return min(soon, key=lambda one: (not one["memory_kills"], one["time"]), default=None)


def _is_echo(bye: Mapping[str, Any]) -> tuple[bool, float]:
    """Errors of communication tell that another rank is gone: any other error explains them. Then the first counts."""
    return cause_of_error(str(bye["why"])) is Cause.COMMUNICATION, float(bye["time"])
