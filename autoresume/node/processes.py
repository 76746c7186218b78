"""The process tree below the daemon.

Law: nothing that the daemon started outlives it. It is the subreaper of its tree, so that orphans
come to it and not to init; children get SIGHUP when it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from autoresume.handoff.signals import PR_SET_PDEATHSIG

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Orphans of our tree become our children. Does nothing where the kernel can't."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    when_we_die: signal.Signals = signal.SIGHUP,
    output: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own: our process group's signals reach us alone. `output` gets what it says."""
    libc = ctypes.CDLL(None)  # loaded before the fork: the child may do little

    def before_exec() -> None:
        signal.signal(when_we_die, signal.SIG_DFL)  # under nohup it is ignored, and that would be inherited
        libc.prctl(PR_SET_PDEATHSIG, int(when_we_die), 0, 0, 0)

    where: dict[str, Any] = (
        {} if output is None else {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    )
    return subprocess.Popen(command, env=dict(environment), start_new_session=True, preexec_fn=before_exec, **where)


def descendants() -> list[psutil.Process]:
    """What lives below us."""
    try:
        return [process for process in psutil.Process().children(recursive=True) if _lives(process)]
    except psutil.Error:
        return []


def kill(these: Iterable[tuple[int, float]]) -> None:
    """SIGKILL these processes, given by pid and start time, and what they started."""
    for pid, started in these:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if abs(process.create_time() - started) < 1.0:
                for one in [process, *process.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        one.kill()


def kill_tree(patience_seconds: float = 10.0) -> None:
    """SIGKILL everything below us, again until nothing is left alive. Nothing is reaped: how our own children
    ended stays theirs to tell."""
    deadline = time.monotonic() + patience_seconds
    while found := descendants():
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if time.monotonic() > deadline:
            return  # in an uninterruptible sleep, on a file system that is gone: the kernel ends it when it can
        time.sleep(0.005)


def reap(sparing: int | None = None) -> None:
    """Collect orphans that ended; `sparing` is waited for by its owner."""
    with contextlib.suppress(ChildProcessError):
        # The kernel is asked for one that ended: to look for them among all processes of a node costs far more.
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == sparing:
                return  # others come next time, when its owner has waited for it
            os.waitpid(ended.si_pid, os.WNOHANG)


def memory_kills(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """How many processes of our control group the kernel has killed for want of memory; 0 where that is unknown."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return 0
    for _, controllers, path in lines:
        if controllers == "":
            file = root / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            file = root / "memory" / path.lstrip("/") / "memory.oom_control"
        else:
            continue
        with contextlib.suppress(OSError, ValueError):
            words = dict(line.split()[:2] for line in file.read_text().splitlines() if len(line.split()) > 1)
            if "oom_kill" in words:
                return int(words["oom_kill"])
    return 0


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
