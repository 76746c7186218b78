"""From a SIGTERM to a committed checkpoint, and from a killed rank to its next step.

Law: the node daemon is signalled as a batch system does it, and its rank killed as an out-of-memory killer does
it. What is compared with it (one copy, one raw write, one step) is measured in the same minute.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import autoresume
from benchmarks import limits, states
from benchmarks.loop import commits, launch
from benchmarks.measure import Group, Recorder

T = TypeVar("T")

_PATIENCE_SECONDS = 150.0
_READY_STEPS = 4
_TOKENS = 64
_INTERRUPTED = 75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", required=True, choices=list(states.TRANSFORMERS))
    parser.add_argument("--rival", required=True)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--train", type=int, default=0, help="be a rank, and save every so many steps")
    given = parser.parse_args()
    if given.train:
        train(given)
        return
    record = Recorder(given.out, "preemption", given.state, given.world, given.rival)
    for number in range(given.times):
        _preempt(given, record, given.disk / f"run-{number}")
    _kill(given, record, given.disk / "run-kill")


def train(given: argparse.Namespace) -> None:
    """A rank that trains until it is stopped, and says of each step when it ended."""
    from torch.nn.parallel import DistributedDataParallel

    group = Group()
    state = states.build(given.state)
    model = DistributedDataParallel(state.model) if group.world > 1 else state.model
    folder = Path(os.environ["AUTORESUME_RUN_DIR"])
    run = autoresume.start(save_every=given.train)
    run.track(model=model, optimizer=state.optimizer)
    run.restore()
    told = open(f"{folder}.steps", "a", buffering=1) if group.rank == 0 else None
    if told:
        _tell(told, run, "restored")
    while True:
        model(state.batch(run.step_count, _TOKENS)).backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        if told:
            _tell(told, run, "stepped")
        run.step()


def _tell(told: Any, run: autoresume.Run, what: str) -> None:
    read = int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])
    line = {"what": what, "step": run.step_count + 1, "life": run.incarnation, "pid": os.getpid(), "read": read}
    told.write(json.dumps({**line, "time": time.time()}) + "\n")


def _start(given: argparse.Namespace, folder: Path, save_every: int, again: bool) -> subprocess.Popen[bytes]:
    words = ["-m", "benchmarks.preemption", *sys.argv[1:], "--train", str(save_every)]
    environment = {**os.environ, "AUTORESUME_RUN_DIR": str(folder), "AUTORESUME_GRACE": "120"}
    command = launch(words, given.world, daemon=True)
    at = command.index("--nodes")
    command[at:at] = ["--grace", "120", *(["--restarts"] if again else [])]
    return subprocess.Popen(command, env=environment)


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = Path(f"{folder}.steps")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _until(found: Callable[[], T], child: subprocess.Popen[bytes]) -> T:
    """What `found` gives, as soon as that is something."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not (value := found()):
        if time.monotonic() > end or child.poll() is not None:
            raise SystemExit(f"the training did not come so far (exit code {child.poll()})")
        time.sleep(0.02)
    return value


def _limits(given: argparse.Namespace, size: int) -> tuple[float, float]:
    copy = limits.WarmCopy(size)
    copy.seconds()
    written = limits.write(given.disk, size)
    (given.disk / "raw").unlink()
    return min(copy.seconds() for _ in range(3)), written


def _preempt(given: argparse.Namespace, record: Recorder, folder: Path) -> None:
    size = states.build(given.state).bytes
    copied, written = _limits(given, size)
    child = _start(given, folder, save_every=10**6, again=False)
    lines = _until(lambda: [line for line in _lines(folder) if line["step"] >= _READY_STEPS], child)
    signalled = time.time()
    child.send_signal(signal.SIGTERM)
    code = child.wait(_PATIENCE_SECONDS)
    ended = time.time()
    if code != _INTERRUPTED:
        raise SystemExit(f"the daemon left with {code} instead of {_INTERRUPTED}")
    times = [line["time"] for line in _lines(folder) if line["what"] == "stepped"]
    step = statistics.median(after - before for before, after in itertools.pairwise(times))
    committed = max(commits(folder).values()) - signalled
    assert lines
    record.add("bytes", "B", size)
    record.add("SIGTERM to commit", "s", committed)
    record.add("SIGTERM to exit", "s", ended - signalled)
    record.add("one step", "s", step)
    record.add("copy + raw write + step", "s", copied + written + step)
    record.add("to commit / (copy + raw write + step)", "ratio", committed / (copied + written + step))


def _kill(given: argparse.Namespace, record: Recorder, folder: Path) -> None:
    """SIGKILL for rank 0, some steps after a checkpoint was committed."""
    child = _start(given, folder, save_every=_READY_STEPS, again=True)

    def ready() -> dict[str, Any] | None:
        there = commits(folder) if folder.exists() else {}
        last = [line for line in _lines(folder) if line["what"] == "stepped"][-1:]
        return last[0] if last and there and last[0]["step"] > min(there) + 1 else None

    last = _until(ready, child)
    os.kill(last["pid"], signal.SIGKILL)
    killed = time.time()
    later = _until(lambda: [line for line in _lines(folder) if line["life"] > last["life"]], child)
    restored = later[0]
    stepped = _until(
        lambda: [one for one in _lines(folder) if one["life"] > last["life"] and one["what"] == "stepped"], child
    )[0]
    child.send_signal(signal.SIGTERM)
    child.wait(_PATIENCE_SECONDS)
    record.add("kill to restored", "s", restored["time"] - killed)
    record.add("kill to first step", "s", stepped["time"] - killed)
    record.add("read from the disk by rank 0", "B", restored["read"])


if __name__ == "__main__":
    main()
