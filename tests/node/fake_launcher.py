"""Plays torchrun: starts ranks, ends them all when one fails, starts them anew if it may.

python fake_launcher.py RANKS RESTARTS MANNER ARGUMENTS: of fake_rank.py. MANNER is "strict" (like torchrun),
"deaf" (does not see that ranks died before all have ended).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    count, restarts, manner, arguments = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    daemon = os.getppid()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: os.kill(daemon, number))
    signal.signal(signal.SIGHUP, lambda number, frame: leave())
    life = 0
    while True:
        life += 1
        failed = once(count, life, manner, arguments)
        if not failed:
            return 0
        if life > restarts:
            return 1


living: list[subprocess.Popen[bytes]] = []


def leave() -> None:
    """The daemon was killed: so are the ranks, as torchrun does it."""
    for rank in living:
        rank.kill()
    os._exit(1)


def once(count: int, life: int, manner: str, arguments: list[str]) -> bool:
    script = str(Path(__file__).with_name("fake_rank.py"))
    living.clear()
    ranks = living
    for rank in range(count):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "FAKE_LIFE": life}
        environment = {**os.environ, **{key: str(value) for key, value in told.items()}, "TORCHELASTIC_RUN_ID": "fake"}
        ranks.append(subprocess.Popen([sys.executable, script, *arguments], env=environment))
    while any(rank.poll() is None for rank in ranks):
        if manner == "strict" and any(rank.poll() for rank in ranks):
            end(ranks)
        time.sleep(0.01)
    return any(rank.returncode for rank in ranks)


def end(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 1.0
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.01)
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()


if __name__ == "__main__":
    sys.exit(main())
