"""What one rival's save costs: the time that the training stands still, until all is durable, and of the processors.

Law: runs in fresh processes, one a rank. Before each save the same bytes are copied and written plainly, so that
each ratio is of neighbours in time. The state changes between saves, and nothing else goes on. The checkpoint before
stays. Where most of the state is frozen, three saves go before those that count: who has to find that out, has.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import time
from pathlib import Path

from benchmarks import limits, peers, states
from benchmarks.measure import Group, Recorder, processor_seconds, sync_tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", required=True, choices=states.STATES)
    parser.add_argument("--rival", required=True, choices=peers.SAVERS)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    group = Group()
    record = Recorder(given.out, "save", given.state, group.world, given.rival, group.rank)
    state = states.build(given.state)
    rival = peers.make(given.rival, given.disk / "checkpoints", state, group)
    size = state.bytes
    record.add("bytes", "B", size)
    record.add("tensors", "", sum(1 for _ in state.tensors()))
    copy = limits.WarmCopy(size // group.world)
    copy.seconds()
    rival.ready()
    settled = 4 if given.state in states.FROZEN else 2
    for number in range(1, given.saves + settled):
        state.change()
        gc.collect()
        copied, written = _limits(group, copy, given.disk, size)
        before = processor_seconds()
        group.barrier()
        began = time.perf_counter()
        rival.save(number)
        stall = group.worst(time.perf_counter() - began)
        rival.wait()
        complete = group.worst(time.perf_counter() - began)
        if not rival.durable and group.rank == 0:
            sync_tree(rival.place(number))
        durable = group.worst(time.perf_counter() - began)
        cost = group.sum(processor_seconds() - before)
        if number == 1:
            record.add("first stall", "s", stall)
            record.add("first durable", "s", durable)
        elif number >= settled:
            record.add("stall", "s", stall)
            record.add("stall / copy", "ratio", stall / copied)
            record.add("complete", "s", complete)
            record.add("durable", "s", durable)
            record.add("raw write / durable", "ratio", written / durable)
            record.add("processor", "s/GB", cost / size * 1e9)
            record.add("copy", "GB/s", size / copied / 1e9, rival="limit")
            record.add("raw write", "GB/s", size / written / 1e9, rival="limit")
        group.barrier()
        if group.rank == 0:
            shutil.rmtree(rival.place(number - 1), ignore_errors=True)
    rival.close()
    group.close()


def _limits(group: Group, copy: limits.WarmCopy, disk: Path, size: int) -> tuple[float, float]:
    group.barrier()
    copied = min(group.worst(copy.seconds()) for _ in range(3))
    written = limits.write(disk, size) if group.rank == 0 else 0.0
    group.barrier()
    return copied, group.worst(written)


if __name__ == "__main__":
    main()
