"""How a preemption ends a job, by what the cluster, a partition and a quality of service say.

Law: pure: of what scontrol and sacctmgr print.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from autoresume.slurm.queue import seconds

KILL_WAIT_SECONDS = 30.0
"""Slurm's own default, from SIGTERM to SIGKILL."""
SHORT_SECONDS = 10.0
"""Too short for a save of any size."""


@dataclass(frozen=True)
class Preemption:
    """What a preemption does to a job, and what time that leaves."""

    mode: str
    """off, requeue, cancel or suspend."""
    grace_seconds: float
    kill_wait_seconds: float

    @property
    def seconds(self) -> float:
        """From the first signal to the kill. Without a grace time there is KillWait."""
        return self.grace_seconds or self.kill_wait_seconds


def preemption(
    configuration: Mapping[str, str],
    partition: Mapping[str, str] | None = None,
    quality: Mapping[str, str] | None = None,
) -> Preemption | None:
    """What happens to a job of this partition, or of this quality of service; None if what decides is not known."""
    kind, mode = configuration.get("PreemptType", ""), configuration.get("PreemptMode", "")
    kill_wait = seconds(configuration.get("KillWait", ""))
    kill_wait = KILL_WAIT_SECONDS if kill_wait is None else kill_wait
    if is_absent(kind) or kind.endswith("/none"):
        return Preemption("off", 0.0, kill_wait)
    decides = quality if by_quality(configuration) else partition
    if decides is None:
        return None
    own = decides.get("PreemptMode", "").upper()
    grace = seconds_of_time(decides.get("GraceTime", ""))
    return Preemption(mode_of(mode if own in ("", "CLUSTER") else own), grace or 0.0, kill_wait)


def by_quality(configuration: Mapping[str, str]) -> bool:
    """Whether a job's quality of service decides about its preemption, and not its partition."""
    return configuration.get("PreemptType", "").endswith("/qos")


def mode_of(text: str) -> str:
    """GANG only says that jobs can share, and WITHIN who may preempt."""
    words = [word for word in re.split(r"\W+", text.upper()) if word not in ("", "GANG", "WITHIN")]
    return words[0].lower() if words else "off"


def is_absent(value: str) -> bool:
    return value in ("", "(null)", "N/A")


def seconds_of_time(text: str) -> float | None:
    """Of Slurm's "1-12:00:00", "00:30:00", "10:00" or (of GraceTime) "120"; None for UNLIMITED, NONE and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", text.strip())
    if not match:
        return None
    days, parts = int(match.group(1) or 0), [int(part) for part in match.group(2).split(":")]
    if match.group(1):  # days-hours[:minutes[:seconds]]
        parts += [0] * (3 - len(parts))
    total = 0
    for part in parts:
        total = total * 60 + part
    return float(days * 86400 + total)
