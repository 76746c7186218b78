"""A rank that does nothing but step: python stepper.py FENCE RANK PROGRESS LOG.

Like ranks that train together, none runs away: each waits for the others every now and then. It ends at
STOP, and writes where it acted.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path

from autoresume.handoff.fence import Order, RankFence

WINDOW = 500
FAR = 2**62


def main() -> None:
    path, rank, log = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[4])
    with open(sys.argv[3], "r+b") as file, memoryview(mmap.mmap(file.fileno(), 0)).cast("Q") as progress:
        acted = act(RankFence(path, rank), rank, progress)
        progress[rank] = FAR
    log.write_text(json.dumps(acted))


def act(fence: RankFence, rank: int, progress: memoryview) -> list[list[object]]:
    acted: list[list[object]] = []
    step = 0
    while True:
        step += 1
        progress[rank] = step
        while step > min(progress) + WINDOW:
            os.sched_yield()
        order = fence.at_boundary(step)
        if order:
            acted.append([step, order.name])
            if order is Order.STOP:
                return acted


if __name__ == "__main__":
    main()
