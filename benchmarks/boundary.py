"""What a step costs that is not a save: `run.step()`, and `run.log()` of three numbers.

    python benchmarks/boundary.py

Microseconds of each call, in three worlds: one rank alone, one rank under the node daemon (`autoresume run`), two ranks
with gloo and no daemon. Each without and with a logger (tensorboard). Between two calls the step "computes" for a
while, as a training does (`--compute 0`: in a row, with all of it in the processor's caches). JSON lines on stdout, a
table on stderr.

Wall time, and the processor's time of the calling thread, which neighbours on the machine disturb less: of both the
median of each round, and the least of them in front. The mean has what happens seldom in it: a line of the journal that
is written, a round of agreement, another process's turn on this core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORLDS = {
    "alone": [],
    "daemon": ["-m", "autoresume", "run"],
    "two ranks": ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"],
}
CALLS = ("nothing", "log", "step")
"""What is measured, in this order; "nothing" is what looking at the clocks takes."""


def work(steps: int, rounds: int, compute_seconds: float) -> None:
    """A training, as far as it matters here."""
    import torch

    import autoresume

    run = autoresume.start(save_every=f"{10**9} steps")
    model = torch.nn.Linear(8, 8)
    run.track(model=model, optimizer=torch.optim.AdamW(model.parameters()))
    batches = run.batches(run.loader(torch.arange(10.0 * steps * rounds), 1), accumulate=10**9)
    run.restore()
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        seconds: dict[str, list[float]] = {f"{what}{of}": [] for what in CALLS for of in ("", ", processor")}
        for _ in range(steps):
            next(batches)
            end = time.perf_counter() + compute_seconds
            while time.perf_counter() < end:
                pass
            marks = [(time.perf_counter(), time.thread_time()), (time.perf_counter(), time.thread_time())]
            run.log(loss=0.5, learning_rate=1e-3, norm=1.25)
            marks.append((time.perf_counter(), time.thread_time()))
            run.step()
            marks.append((time.perf_counter(), time.thread_time()))
            for what, before, after in zip(CALLS, marks, marks[1:]):
                seconds[what].append(after[0] - before[0])
                seconds[f"{what}, processor"].append(after[1] - before[1])
        for what, each in seconds.items():
            settled = each[steps // 10 :]
            found.setdefault(what, []).append(round(statistics.median(settled) * 1e6, 1))
            found.setdefault(f"{what}, mean", []).append(round(statistics.mean(settled) * 1e6, 1))
    if run.rank == 0:
        Path(os.environ["BOUNDARY_RESULT"]).write_text(json.dumps(found))
    run.close("ended", "measured")


def measure(world: str, logger: str, given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        environment = {**os.environ, "AUTORESUME_RUN_DIR": f"{folder}/run", "BOUNDARY_RESULT": str(result)}
        if logger:
            environment["AUTORESUME_LOGGERS"] = logger
        again = [
            __file__,
            "--worker",
            f"--steps={given.steps}",
            f"--rounds={given.rounds}",
            f"--compute={given.compute}",
        ]
        ended = subprocess.run(
            [sys.executable, *WORLDS[world], *again], env=environment, capture_output=True, text=True
        )
        if not result.exists():
            raise SystemExit(f"{world}: {ended.stdout}{ended.stderr}")
        found = json.loads(result.read_text())
    print(json.dumps({"world": world, "logger": logger or None, "microseconds": found}), flush=True)
    for what, values in found.items():
        shown = " ".join(f"{value:8.1f}" for value in values)
        print(f"{world:<10} {logger or 'no logger':<12} {what:<22} {min(values):8.1f} us   of {shown}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compute", type=float, default=1.0, metavar="MS", help="what a step computes")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.steps, given.rounds, given.compute / 1e3)
        return
    for world in WORLDS:
        for logger in ("", "tensorboard"):
            measure(world, logger, given)


if __name__ == "__main__":
    main()
