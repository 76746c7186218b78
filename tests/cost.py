"""What a run of the suite costs, in a unit that is the same on any machine: the processor time of one `import torch`.

Law: counted is the processor time, as user and in the system, of pytest, of its workers and of all that they started and
that has ended, also where its own parent did not wait for it: under xdist orphans come to the controller. Not counted is
what another process than ours started (a service of the machine), and what ended under a parent that ignores SIGCHLD;
without xdist also orphans, which must not become a test's children. COST=30 in the environment tells of the 30 files and
tests that cost the most, by what this worker, what it waited for and its fork server used meanwhile: what a test left to
others (jobs on Slurm) is not in there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_UNIT = "import torch, resource; used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"

elsewhere: list[Callable[[], float]] = []
"""What more a worker asks for its processor seconds: a fork server's, which the worker waits for at its end only."""


def used_seconds() -> float:
    """What this process has used so far, and what it has waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def seconds_of(pid: int) -> float:
    """What a living process has used so far, and what it has waited for."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def unit_seconds() -> float:
    """The median of three."""
    said = [subprocess.run([sys.executable, "-c", _UNIT], stdout=subprocess.PIPE, check=True).stdout for _ in range(3)]
    return statistics.median(map(float, said))


class Account:
    """Of the process that the user started: pytest itself, or xdist's controller."""

    def __init__(self, has_workers: bool) -> None:
        self.tests: Counter[str] = Counter()
        if has_workers:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            threading.Thread(target=_reap, daemon=True).start()

    def lines(self, shown: int) -> Iterator[str]:
        seconds = used_seconds() + sum(each() for each in elsewhere)
        unit = unit_seconds()
        yield f"cost: {seconds:,.0f} CPU-seconds, {seconds / unit:,.0f} imports of torch"
        left = [pid for pid in _children() if pid]
        if left:
            yield f"still alive, and not counted: {len(left)} processes: {' '.join(map(str, left))}"
        if shown:
            files: Counter[str] = Counter()
            for name, used in self.tests.items():
                files[name.partition("::")[0]] += used
            for counted in (files, self.tests):
                yield f"{sum(counted.values()) / unit:10.1f}  in all"
                yield from (f"{used / unit:10.1f}  {name}" for name, used in counted.most_common(shown))


@contextlib.contextmanager
def measured(tests: Counter[str], name: str) -> Iterator[None]:
    before = used_seconds() + sum(each() for each in elsewhere)
    try:
        yield
    finally:
        tests[name] += used_seconds() + sum(each() for each in elsewhere) - before


def _reap() -> None:
    """Wait for whatever ends: orphans are counted, and tests that look for them find them gone. That this also waits for
    xdist's workers does them no harm: their owner finds them ended."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.1)


def _children() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = path.read_text().rpartition(")")[2].split()
            if int(words[1]) == os.getpid() and words[0] != "Z":
                found.append(int(path.parent.name))
    return found
