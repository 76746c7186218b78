"""What autoresume costs a step in which nothing is saved: `run.step()`, and `run.log`, in microseconds."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import autoresume
from benchmarks import states
from benchmarks.loop import launch
from benchmarks.measure import Group, Recorder

_STEPS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", required=True)
    parser.add_argument("--rival", required=True)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--daemon", action="store_true")
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--train", action="store_true", help="be a rank")
    given = parser.parse_args()
    if not given.train:
        command = launch(["-m", "benchmarks.overhead", *sys.argv[1:], "--train"], given.world, given.daemon)
        sys.exit(subprocess.run(command).returncode)
    group = Group()
    state = states.build(given.state)
    run = autoresume.start(run_dir=str(given.disk / "run"), save_every=100 * _STEPS)
    run.track(model=state.model, optimizer=state.optimizer)
    run.restore()
    record = Recorder(given.out, "overhead", given.state, group.world, given.rival, group.rank)
    steps, logs = [], []
    for number in range(_STEPS):
        began = time.perf_counter()
        run.log(loss=0.5 / (number + 1))
        logged = time.perf_counter()
        run.step()
        ended = time.perf_counter()
        logs.append((logged - began) * 1e6)
        steps.append((ended - logged) * 1e6)
    record.add("run.step()", "µs", steps[_STEPS // 10 :])
    record.add("run.log()", "µs", logs[_STEPS // 10 :])
    record.add("mean of run.step()", "µs", sum(steps) / len(steps))
    run.finish()
    group.close()


if __name__ == "__main__":
    main()
