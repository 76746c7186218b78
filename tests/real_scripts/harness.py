"""Runs small scripts as users run them, interrupts them, and compares what they made with an undisturbed run.

Law: a script is a process; it interrupts itself where its environment variable NASTY says
(`scripts/nasty.py`), so that nothing depends on time. Two runs are the same if metrics.jsonl holds the
same value for every step, each exactly once, and the final state has the same digest on every rank.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresume.audit import verdict
from tests import warm

SCRIPTS = Path(__file__).parent / "scripts"
INTERRUPTED = 75
PATIENCE_SECONDS = 120.0
MOST_LIVES = 30


@dataclass
class Ended:
    """One process that has ended. `code` is negative where a signal killed it, None where it hung."""

    code: int | None
    out: str
    err: str


@dataclass
class Started:
    process: warm.Popen
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return self.process.pid


def environment(**more: str) -> dict[str, str]:
    """Ours, without what launchers and autoresume read."""
    known = ("AUTORESUME_", "SLURM_", "TORCHELASTIC_", "MASTER_", "NASTY")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(known)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PYTEST_CURRENT_TEST"):
        kept.pop(name, None)
    return {**kept, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1", **more}


@dataclass
class Place:
    """A folder in which one run lives; scripts are started in it."""

    folder: Path
    ended: list[Ended] = field(default_factory=list)

    def start(self, script: str, *arguments: str, **variables: str) -> Started:
        """Start a script of scripts/ (or a path) and go on."""
        self.folder.mkdir(exist_ok=True, parents=True)
        number = len(list(self.folder.glob("out-*")))
        out, err = self.folder / f"out-{number}", self.folder / f"err-{number}"
        with open(out, "a") as to_out, open(err, "a") as to_err:
            process = warm.Popen(
                [sys.executable, str(SCRIPTS / script), *arguments],
                cwd=self.folder,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=to_out,
                stderr=to_err,
                start_new_session=True,
            )
        return Started(process, out, err)

    def wait(self, started: Started) -> Ended:
        code: int | None
        try:
            code = started.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.process.wait()
            code = None
        ended = Ended(code, started.out.read_text(), started.err.read_text())
        self.ended.append(ended)
        return ended

    def run(self, script: str, *arguments: str, **variables: str) -> Ended:
        """Start a script and wait for its end."""
        return self.wait(self.start(script, *arguments, **variables))

    def run_ranks(self, count: int, script: str, *arguments: str, **variables: str) -> list[Ended]:
        """Start a script as torchrun does, `count` ranks of it, and wait for all."""
        store = warm.server().ask(store=True)
        started = [
            self.start(
                script,
                *arguments,
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(count),
                LOCAL_WORLD_SIZE=str(count),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(store["port"]),
                TORCHELASTIC_USE_AGENT_STORE="True",
                TORCHELASTIC_RESTART_COUNT="0",  # torch 2.4 asks for it
                **variables,
            )
            for rank in range(count)
        ]
        try:
            return [self.wait(item) for item in started]
        finally:
            os.kill(store["pid"], signal.SIGKILL)

    def live(self, script: str, *arguments: str, nasty: Sequence[str] = (), ranks: int = 1, **variables: str) -> int:
        """Start the same command again and again until it finishes; the number of lives.

        `nasty` says how each life is interrupted; the last one is repeated if it ends in "!", else lives
        after it are left alone. A life may finish before its interruption comes.
        """
        waiting = list(nasty)
        for life in range(1, MOST_LIVES + 1):
            spec = waiting[0] if waiting else ""
            if waiting and not (spec.endswith("!") and len(waiting) == 1):
                waiting.pop(0)
            ends = self.run_ranks(ranks, script, *arguments, NASTY=spec.rstrip("!"), **variables) if ranks > 1 else []
            ends = ends or [self.run(script, *arguments, NASTY=spec.rstrip("!"), **variables)]
            codes = {ended.code for ended in ends}
            if codes == {0}:
                return life
            wanted = {INTERRUPTED} if spec.startswith(("TERM", "GROUP")) else {-signal.SIGKILL}
            assert spec, f"life {life} of {script} ended with {codes}:\n{ends[0].err}"
            assert codes <= wanted | ({1} if ranks > 1 else set()), f"{spec}: {codes}\n{ends[0].err}"
        raise AssertionError(f"{script} did not come to its end in {MOST_LIVES} lives")

    @property
    def run_folder(self) -> Path:
        (found,) = self.folder.glob("runs/*")
        return found

    @property
    def metrics(self) -> dict[int, dict[str, Any]]:
        return read_metrics(self.run_folder / "metrics.jsonl")

    @property
    def final(self) -> dict[str, Any]:
        """What the script called `nasty.finish` with, as digests, for each rank."""
        return {path.name: json.loads(path.read_text()) for path in sorted(self.folder.glob("final-*.json"))}

    def incarnations(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.run_folder.glob("incarnations/*.json"))]


def read_metrics(path: Path) -> dict[int, dict[str, Any]]:
    """step -> values. Each value of each step is there exactly once, and steps never go back."""
    found: dict[int, dict[str, Any]] = {}
    last = 0
    for line in path.read_text().splitlines():
        record = json.loads(line)
        step, values = record["step"], record["values"]
        assert step >= last, f"{path}: step {step} comes after {last}"
        twice = set(values) & set(found.get(step, {}))
        assert not twice, f"{path}: step {step} has {twice} twice"
        found.setdefault(step, {}).update(values)
        last = step
    return found


def assert_same(whole: Place, torn: Place) -> None:
    """Both runs have the same metrics for every step and the same final state."""
    expected, got = whole.metrics, torn.metrics
    assert expected, "the undisturbed run logged nothing"
    for step in sorted(expected | got):
        assert expected.get(step) == got.get(step), f"step {step}: undisturbed {expected.get(step)}, {got.get(step)}"
    for ended in whole.ended:
        assert "nothing tracks it" not in ended.err, ended.err
    told = [one.words() for one in verdict.read(torn.run_folder) if one.difference is not None]
    assert not told, f"steps that were trained again came out otherwise, as the run itself says: {told}"
    assert whole.final, "the undisturbed run did not come to its end"
    for name, values in whole.final.items():
        other = torn.final.get(name, {})
        differing = [key for key in values if values[key] != other.get(key)]
        assert not differing, f"{name}: {', '.join(differing)} of the final state differ"


@dataclass
class Stage:
    """What a test gets: places for runs."""

    folder: Path

    def place(self, name: str) -> Place:
        return Place(self.folder / name)

    def compare(
        self, script: str, *arguments: str, nasty: Sequence[str], ranks: int = 1, save_every: str = "", **more: str
    ) -> tuple[Place, Place]:
        """Run undisturbed and interrupted, each to the end, and compare. Returns both places."""
        whole, torn = self.place("whole"), self.place("torn")
        if not whole.folder.exists():
            assert whole.live(script, *arguments, ranks=ranks, **more) == 1
        saving = {"AUTORESUME_SAVE_EVERY": save_every} if save_every else {}
        lives = torn.live(script, *arguments, nasty=nasty, ranks=ranks, **saving, **more)
        assert lives > 1, f"{script} was not interrupted by {nasty}"
        assert_same(whole, torn)
        return whole, torn
