"""Processes as /proc tells them, and waiting for conditions.

A process is its pid and its start time, so that a reused pid is never taken for it. A zombie
counts as dead: where PID 1 reaps late or never (containers), a signal 0 would call it alive.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Process:
    """One incarnation of a pid; `started` is in clock ticks since boot."""

    pid: int
    started: int

    def alive(self) -> bool:
        return find(self.pid) == self

    def kill(self) -> None:
        if self.alive():
            with suppress(ProcessLookupError):  # it ended in between, as wanted
                os.kill(self.pid, signal.SIGKILL)


def find(pid: int) -> Process | None:
    """The living process with this pid."""
    directory = Path(f"/proc/{pid}")
    try:
        text = (directory / "stat").read_text(errors="replace")
        # The command's name stands in parentheses and may itself hold spaces and parentheses.
        state, *fields = text.rpartition(")")[2].split()
        # A killed process's first thread may be a zombie while the others still hold its ports.
        if state in "ZX" and len(os.listdir(directory / "task")) <= 1:
            return None
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(pid, started=int(fields[18]))


def spawn(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
    """Start a daemon in the foreground of its own session, its output appended to `log`."""
    with log.open("ab") as output:
        pid = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
        ).pid
    # Started -1 is never alive: what died before it could be looked at is dead.
    return find(pid) or Process(pid, started=-1)


def everything() -> Iterator[int]:
    """All pids but this process's."""
    own = str(os.getpid())
    for entry in os.listdir("/proc"):
        if entry.isdigit() and entry != own:
            yield int(entry)


def environment_of(pid: int) -> list[bytes]:
    """`NAME=value` entries it was started with; none if it is gone or not ours to read."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False when the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def tail(log: Path, lines: int = 15) -> str:
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(empty)"
