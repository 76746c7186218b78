"""How long a file that one node publishes takes until another node sees it.

Law: two processes answer each other with files in one folder, as node daemons and ranks do; only the clock of the
first counts. Both end within a bound.
"""

from __future__ import annotations

import time
from pathlib import Path

from autoresume.base.findings import Finding, Verdict
from autoresume.storage.local import LocalStorage

_ROUNDS = 4
"""After a first one, in which the two wait for each other's start."""
_POLL_SECONDS = 0.005
_SLOW_SECONDS = 10.0


def play(folder: Path, first: bool, patience_seconds: float = 60.0) -> list[float]:
    """One of two players; the seconds of each round there and back. Raises TimeoutError if the other isn't seen."""
    _wait_for(folder, patience_seconds)  # not to be made on a node where it is not the same folder
    storage = LocalStorage(folder)
    mine, other = ("ping", "pong") if first else ("pong", "ping")
    took = []
    for number in range(_ROUNDS + 1):
        began = time.monotonic()
        if first:
            storage.write(f"{mine}-{number}", b"here")
        _wait_for(storage.path(f"{other}-{number}"), patience_seconds)
        if not first:
            storage.write(f"{mine}-{number}", b"here")
        took.append(time.monotonic() - began)
    return took[1:]


def _wait_for(path: Path, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path.name} was not seen within {patience_seconds:.0f} s")
        time.sleep(_POLL_SECONDS)


def judge(nodes: tuple[str, ...], rounds: list[float]) -> Finding:
    """`rounds`: seconds there and back."""
    name, longest = "seen by two nodes", max(rounds) / 2
    found = f"after {longest:.2f} s at most ({' and '.join(nodes)})"
    if len(set(nodes)) < 2:
        return Finding(name, Verdict.UNKNOWN, found, "both were on one node, which says nothing of two")
    if longest > _SLOW_SECONDS:
        late = "nodes see each other's files late: a start takes minutes, and a stop may not reach all in time"
        remedy = "Ask for a mount with shorter caching of names (e.g. NFS: actimeo, lookupcache=positive)."
        return Finding(name, Verdict.WARN, found, late, remedy)
    return Finding(name, Verdict.PASS, found, "nodes meet, and commit together, in the run directory")


def unseen(why: str) -> Finding:
    return Finding(
        "seen by two nodes",
        Verdict.FAIL,
        why,
        "what one node writes another does not see: no checkpoint of several nodes gets whole there",
        "Put the run directory on a file system that all nodes share.",
    )
