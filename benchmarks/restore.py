"""What one rival's load costs: into the live tensors, cold from the disk and warm from the page cache.

Law: `--prepare` writes the checkpoint in one process, another loads it, cold and then warm. The loaded state is
compared byte for byte with what was saved: a load that is quick and wrong is a failure.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks import limits, peers, states
from benchmarks.measure import Group, Recorder, drop_caches, sync_tree, warm_cache

_NUMBER = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", required=True, choices=states.STATES)
    parser.add_argument("--rival", required=True, choices=peers.LOADERS)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    group = Group()
    state = states.build(given.state)
    rival = peers.make(given.rival, given.disk / "checkpoints", state, group)
    raw, expected = given.disk / "raw", given.disk / "digest"
    if given.prepare:
        rival.prepare(_NUMBER)
        rival.close()
        group.barrier()
        if group.rank == 0:
            limits.write(given.disk, state.bytes)
            expected.write_text(state.digest())
            sync_tree(given.disk)
        return
    record = Recorder(given.out, "restore", given.state, group.world, given.rival, group.rank)
    record.add("bytes", "B", state.bytes)
    for kind in ("cold", "warm", "warm"):
        limited = _limit(kind == "cold", group, raw, given.disk)
        state.clear()
        group.barrier()
        began = time.perf_counter()
        rival.load(_NUMBER)
        took = group.worst(time.perf_counter() - began)
        if state.digest() != expected.read_text():
            raise SystemExit(f"Error: {given.rival} did not load what it had saved")
        rival.unload()
        record.add(f"{kind} load", "s", took)
        record.add(f"limit / {kind} load", "ratio", limited / took)
        record.add(f"{kind} read", "GB/s", state.bytes / limited / 1e9, rival="limit")
    group.close()


def _limit(cold: bool, group: Group, raw: Path, disk: Path) -> float:
    """Rank 0 reads, alone: what a node has to do at least, however many ranks it holds."""
    seconds = 0.0
    if group.rank == 0 and cold:
        drop_caches(disk)
        seconds = limits.read(raw)
        drop_caches(disk)
    elif group.rank == 0:
        warm_cache(disk)
        copy = limits.MappedCopy(raw)
        seconds = min(copy.seconds() for _ in range(3))
    group.barrier()
    return group.worst(seconds)


if __name__ == "__main__":
    main()
