"""`make soak`: a real training of 4 ranks under the node daemon, interrupted hundreds of times, for an hour.

python -m tests.torture.soak [--seconds 3600] [--ranks 4] [--kills 20] [--seed 0] [--output FOLDER]: drills with one seed
after another, until the time is over. Prints what happened: interruptions survived, steps lost, and what was left behind
(processes, files in shared memory, descriptors of the driver, its memory). Exit code 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from autoresume.cli.drill import _states
from autoresume.drill.drill import IDENTICAL, Drill
from autoresume.drill.driver import DrillFailed, Plan
from autoresume.handoff.mailbox import memory_root
from autoresume.node import processes

SCRIPT = Path(__file__).parents[1] / "drill" / "scripts" / "trainer.py"
STEPS_PER_EPOCH = {1: 6, 2: 3, 4: 2}
EPOCHS = 100


def left_behind(before: set[str]) -> Counter[str]:
    """What is there now, and was not when it began."""
    found: Counter[str] = Counter()
    found["processes"] = len(processes.descendants())
    found["files in shared memory"] = len({*map(str, memory_root().glob("*"))} - before)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("drills/soak"))
    words = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    processes.become_subreaper()
    own = psutil.Process()
    before = {*map(str, memory_root().glob("*"))}
    memory = descriptors = 0
    began, seed, problems = time.monotonic(), words.seed, list[str]()
    total: Counter[str] = Counter()
    while time.monotonic() - began < words.seconds:
        arguments = ["ranks" if words.ranks > 1 else "none", str(EPOCHS)]
        plan = Plan(str(SCRIPT), arguments, words.output.absolute(), words.ranks, save_every="3 steps")
        try:
            found = Drill(lambda text: None, _states).run(plan, seed, words.kills)
        except KeyboardInterrupt:
            break  # what was done counts
        except DrillFailed as error:
            problems.append(f"seed {seed}: {error}")
            break
        came = [life for life in found.lives if life.came]
        total.update(drills=1, lives=len(found.lives), interruptions=len(came), steps=found.steps)
        total.update({"steps lost": found.lost_steps, "steps that plain restarts would lose": found.lost_without})
        total.update(f"interrupted by {life.interruption.action}" for life in came if life.interruption is not None)
        if not memory:  # what comparing imports is not a leak
            memory, descriptors = own.memory_info().rss, own.num_fds()
        if found.verdict != IDENTICAL:
            problems.append(f"seed {seed}: {found.verdict}: {found.divergence or found.final}")
            break
        problems += [f"seed {seed}: {count} {what} left" for what, count in left_behind(before).items() if count]
        seconds = time.monotonic() - began
        print(
            f"{seconds:6.0f} s: seed {seed}: {found.verdict}, {len(came)} interruptions, {found.lost_steps} steps lost"
        )
        sys.stdout.flush()
        seed += 1
    print("\nsoak:")
    for name, count in total.items():
        print(f"  {count:8,} {name}")
    grown = (own.memory_info().rss - memory) / 1e6
    print(
        f"  {grown:8.1f} MB that the driver has grown by since the first drill, {own.num_fds() - descriptors} descriptors more"
    )
    print("\n".join(problems) or "  nothing else: no divergence, no process, no file in shared memory left")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
