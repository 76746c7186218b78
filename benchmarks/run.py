"""Runs the measurements, one fresh process after the other, and has their report written.

Law: rivals alternate (A B A B ...) over rounds, so that a busy neighbour does not meet one of them alone. What
fails or isn't installed is a line of the results with its reason; nothing is left out silently.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import peers, report

ROOT = Path(__file__).resolve().parents[1]
SUITES = ["save", "loop", "restore", "overhead", "preemption", "startup"]
_VERSIONS = ["torch", "numpy", "safetensors", "torchsnapshot", "dlrover", "lightning-fabric"]
_LEAST_FREE_BYTES = 12_000_000_000


@dataclass(frozen=True)
class Cell:
    """One process to measure, or one for each rank; `alone` is a measurement that starts processes by itself."""

    suite: str
    rival: str
    state: str = ""
    world: int = 1
    words: tuple[str, ...] = ()
    alone: bool = False
    keep: bool = False
    """Leave the disk folder to the next cell of the same place."""
    seconds: float = 600.0

    @property
    def place(self) -> str:
        return f"{self.suite}-{self.rival}-{self.state}-{self.world}".replace(" ", "_").replace("/", "_")


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    """What is measured, in order."""
    for suite in given.only:
        yield from globals()[f"_{suite}"](given)


def _save(given: argparse.Namespace) -> Iterator[Cell]:
    main = ["autoresume", "torch.save", "dcp.async_save"]
    few = max(1, given.rounds // 2)
    plan = [(given.state or "125M", 1, peers.SAVERS, given.rounds)]
    plan += [("125M", world, main, few) for world in (2, 4) if given.state is None or world in given.world]
    plan += [("5,000 tensors", 1, main, few)] if given.state is None else []
    plan += [("125M, frozen but for a block", 1, main, few)] if given.state is None else []
    if given.full:
        plan += [("350M", 1, main, few), ("50,000 tensors", 1, main[:2], few), ("5,000 tensors", 2, main, few)]
    for state, world, rivals, rounds in plan:
        for number in range(rounds if not given.world or world in given.world else 0):
            for rival in given.rivals or rivals:
                slow = rival in peers.SLOW and number >= few
                if not slow and not (world > 1 and rival == "Lightning Fabric"):
                    yield Cell("save", rival, given.state or state, world, ("--saves", str(given.saves)))


def _restore(given: argparse.Namespace) -> Iterator[Cell]:
    for world, rivals in ((1, peers.LOADERS), (2, ["autoresume", "torch.save", "dcp.save"])):
        if given.world and world not in given.world:
            continue
        chosen = [rival for rival in given.rivals or rivals if rival in peers.LOADERS]
        rounds = given.rounds if world == 1 else max(1, given.rounds // 2)
        state = given.state or "125M"
        for rival in chosen:
            yield Cell("restore", rival, state, world, ("--prepare",), keep=True)
        for number in range(rounds):
            for rival in chosen:
                yield Cell("restore", rival, state, world, keep=number < rounds - 1)


def _loop(given: argparse.Namespace) -> Iterator[Cell]:
    state = given.state or "125M"
    words = ("--saves", str(given.saves))
    for world in given.world or [1, 2]:
        yield Cell("loop", "autoresume, daemon", state, world, (*words, "--daemon"), alone=True)
        if world == 1:
            yield Cell("loop", "autoresume", state, world, words, alone=True)
            for rival in ("torch.save", "dcp.async_save"):
                yield Cell("loop", rival, state, world, words, alone=True)


def _overhead(given: argparse.Namespace) -> Iterator[Cell]:
    for world in given.world or [1, 2]:
        for daemon in ((), ("--daemon",)):
            rival = "autoresume, daemon" if daemon else "autoresume"
            yield Cell("overhead", rival, "tiny", world, daemon, alone=True)


def _preemption(given: argparse.Namespace) -> Iterator[Cell]:
    for world in given.world or [1, 2]:
        words = ("--times", str(given.rounds if world == 1 else max(1, given.rounds // 2)))
        yield Cell("preemption", "autoresume, daemon", given.state or "125M", world, words, alone=True)


def _startup(given: argparse.Namespace) -> Iterator[Cell]:
    yield Cell("startup", "autoresume", "tiny", 1, ("--times", str(3 * given.rounds)), alone=True)


# -- one cell -----------------------------------------------------------------------------------------


def measure(cell: Cell, scratch: Path, out: Path) -> None:
    """Run it; what it measured, or why it could not, is in `out` afterwards."""
    disk = scratch / cell.place
    disk.mkdir(parents=True, exist_ok=True)
    words = ["--rival", cell.rival, "--state", cell.state, "--disk", str(disk), "--out", str(out), *cell.words]
    module = f"benchmarks.{cell.suite}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    if cell.alone:
        command = [sys.executable, "-m", module, *words, "--world", str(cell.world)]
    elif cell.world > 1:
        elastic = ["--nnodes=1", f"--nproc-per-node={cell.world}", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        command = [sys.executable, "-m", "torch.distributed.run", *elastic, "-m", module, *words]
    else:
        command = [sys.executable, "-m", module, *words]
    problem = peers.missing(cell.rival) or _supervise(command, environment, scratch / "said.txt", cell.seconds)
    if problem:
        say = {"suite": cell.suite, "state": cell.state, "world": cell.world, "rival": cell.rival, "problem": problem}
        with open(out, "a") as file:
            file.write(json.dumps(say) + "\n")
        print(f"    {problem}", flush=True)
    if not cell.keep:
        shutil.rmtree(disk, ignore_errors=True)


def _supervise(command: list[str], environment: dict[str, str], said: Path, seconds: float) -> str | None:
    """Run a command in a group of processes of its own, which is gone afterwards; why it failed, if it did."""
    with open(said, "w") as file:
        child = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        except BaseException:
            _end(child)
            raise
        _end(child)
    if code is None:
        return f"it took longer than {seconds:.0f} s"
    return None if code == 0 else _reason(said.read_text(errors="replace"), code)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a command with all that it has started, also what leads a session of its own."""
    started = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(child.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    child.wait()


def _reason(text: str, code: int) -> str:
    """The line that says most: the first exception's message, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line or line.startswith(("ImportError", "ModuleNotFoundError"))]
    return (errors or lines or [f"exit code {code}"])[0 if errors else -1][-300:]


# -- the whole ----------------------------------------------------------------------------------------


def machine(disk: Path, command: list[str]) -> dict[str, object]:
    """What the figures are of."""
    versions = {}
    for name in _VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    kind = max(
        (part for part in psutil.disk_partitions(all=True) if str(disk.resolve()).startswith(part.mountpoint)),
        key=lambda part: len(part.mountpoint),
    )
    return {
        "machine": f"{os.cpu_count()} cores of {models[0] if models else platform.machine()}",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "disk": f"{kind.fstype} on {kind.device}",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "versions": versions,
        "command": " ".join(command),
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "load": [round(one, 2) for one in os.getloadavg()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(SUITES), help=f"some of {','.join(SUITES)}")
    parser.add_argument("--world", default="", help="world sizes, e.g. 1,2")
    parser.add_argument("--rivals", default="", help=f"some of {','.join(peers.RIVALS)}")
    parser.add_argument("--state", default=None, help="one state instead of the usual ones, see states.py")
    parser.add_argument("--rounds", type=int, default=2, help="how often all rivals take their turn")
    parser.add_argument("--saves", type=int, default=3, help="saves of each process after its first")
    parser.add_argument("--quick", action="store_true", help="tiny states, to see whether all works")
    parser.add_argument("--full", action="store_true", help="more rounds, larger states, more tensors")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "output")
    parser.add_argument("--disk", type=Path, default=None, help="where checkpoints are written; default: the output's")
    given = parser.parse_args()
    given.only = given.only.split(",")
    given.world = [int(one) for one in given.world.split(",") if one]
    given.rivals = [one for one in given.rivals.split(",") if one]
    unknown = [one for one in given.only if one not in SUITES] + [
        one for one in given.rivals if one not in peers.RIVALS
    ]
    if unknown:
        parser.error(f"there is no {unknown[0]!r}")
    if given.quick:
        given.state, given.rounds, given.saves = given.state or "tiny", 1, 2
    if given.full:
        given.rounds = max(given.rounds, 4)
    given.output.mkdir(parents=True, exist_ok=True)
    scratch = (given.disk or given.output) / f"scratch-{os.getpid()}"
    scratch.mkdir(parents=True)
    if not given.quick and shutil.disk_usage(scratch).free < _LEAST_FREE_BYTES:
        parser.error(f"{scratch} has less than {_LEAST_FREE_BYTES / 1e9:.0f} GB free; give another --disk")
    results = given.output / "results.jsonl"
    about = machine(scratch, ["python", "-m", "benchmarks.run", *sys.argv[1:]])
    results.write_text(json.dumps({"about": about}) + "\n")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that all is cleaned up
    began = time.monotonic()
    try:
        for cell in cells(given):
            what = f"{cell.suite}: {cell.rival}, {cell.state}, world {cell.world} {' '.join(cell.words)}"
            print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)
            measure(cell, scratch, results)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{time.monotonic() - began:6.0f} s  done: {results}", flush=True)
    report.write(results, given.output)


if __name__ == "__main__":
    main()
