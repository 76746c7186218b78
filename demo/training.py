"""A training that the demo starts, watches and interrupts.

Law: it is started as a user would start it, `autoresume run --nproc 2 gpt.py`. It is interrupted by signals from
outside while the rank that came to the place waits there (demo/cue.py), so that no interruption comes too late. What is
told of it is read from what it wrote.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.discover import newest_step
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.format.names import CheckpointName
from autoresume.node import processes
from autoresume.storage.local import LocalStorage
from demo import cue

RUN = (sys.executable, "-m", "autoresume", "run", "--nproc", "2")
SCRIPT = Path(__file__).resolve().parent / "gpt.py"
STEPS = 180
SILENT_SECONDS = 600.0
"""After so long without a step or a new life a training is taken for hanging."""
HELD_SECONDS = 60.0
"""So long it waits at most for what should happen at once."""
_OFFER_SECONDS = 0.2
"""In which a daemon that has heard a signal offers the ranks a step to stop at: so it is the next one, and not one that
a fast training comes to before all have looked."""
_POLL_SECONDS = 0.02
_SAY_SECONDS = 5.0
_OTHERS = ("AUTORESUME_", "SLURM_", "PET_", "TORCHELASTIC_")
"""What a user's own job has set is not for the demo."""


class Failed(Exception):
    """The demo can't go on; the message is the one line that is shown."""


class Training:
    def __init__(self, folder: Path, memory: Path, console: Console) -> None:
        """`memory`: where its daemons keep snapshots."""
        self.folder, self.memory, self.console = folder, memory, console
        self.log = Path(f"{folder}.log")
        self.process: subprocess.Popen[bytes] | None = None
        self._cues = Path(f"{folder}-cues")
        self._cues.mkdir(parents=True)
        self._plan: dict[str, tuple[int, int]] = {}
        self._told = 0
        """Lives whose beginning was told."""
        self._seen: tuple[int, int] = (0, 0)
        self._seen_at = self._said_at = time.monotonic()

    def start(self, *options: str, failpoint: str = "") -> None:
        own = {
            "AUTORESUME_RUN_DIR": str(self.folder),
            "AUTORESUME_MEMORY": str(self.memory),
            "AUTORESUME_FAILPOINT": failpoint,
            cue.VARIABLE: str(self._cues),
            "OMP_NUM_THREADS": "1",
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the network says of this machine's name
        self._seen_at = time.monotonic()
        with self.log.open("ab") as output:
            self.process = processes.spawn([*RUN, *options, str(SCRIPT)], environment | own, signal.SIGTERM, output)

    def plan(self, name: str, step: int, rank: int) -> None:
        """There it will wait: to be called while it does not run, or has not come there."""
        self._plan[name] = step, rank
        cue.write(self._cues / "plan.json", self._plan)

    def interrupt(self, name: str, send: Callable[[int], None], heard: Callable[[], bool] = lambda: True) -> int:
        """When it waits at the place `name`, `send` gets the process id of the rank that waits there.

        It goes on when the signal was `heard`. The step at which it waited.
        """
        reached = self._cues / f"reached-{name}.json"
        self._until(reached.exists, f"it was {name}")
        told = cue.read(reached)
        assert told is not None
        send(int(told["pid"]))
        self._release(name, heard)
        return int(told["step"])

    def hold(self, name: str, until: Callable[[], bool]) -> None:
        """If it comes to the place `name` before that, it waits there until something has happened."""
        reached = self._cues / f"reached-{name}.json"
        self._until(lambda: reached.exists() or self._ended() or until(), "anything happened")
        self._release(name, until)

    def _release(self, name: str, when: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HELD_SECONDS
        while not when() and not self._ended() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        time.sleep(_OFFER_SECONDS)
        (self._cues / f"done-{name}").touch()

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stops(self) -> int:
        """How often a daemon said that all ranks stop."""
        return self.log.read_bytes().count(b"the ranks stop at a common step")

    def end(self, codes: Iterable[int] = (0,)) -> None:
        """Returns when the command has ended. Raises Failed if its exit code is none of `codes`."""
        process = self.process
        assert process is not None
        self._until(lambda: process.poll() is not None, "its end")
        if process.returncode not in codes:
            raise Failed(f"the training ended with exit code {process.returncode}; {self.where()}")

    def where(self) -> str:
        """Where to read on, and the last thing that was said there."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"read its log {self.log}" + (f", which ends with: {last}" if last else "")

    # -- what it wrote ----------------------------------------------------------------------------

    @property
    def storage(self) -> LocalStorage:
        return LocalStorage(self.folder)

    def records(self) -> list[dict[str, Any]]:
        """Of each step: its number and what was logged."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def lives(self) -> list[Incarnation]:
        """Those that have been claimed so far; `began` has no step before the place is found at which it goes on."""
        return incarnation.history(self.storage) if self.folder.exists() else []

    def daemon(self) -> int:
        """The process id of the daemon of the life that is now."""
        return self.lives()[-1].processes[1][0]

    def saved_step(self) -> int:
        """The step of the newest checkpoint that is whole."""
        return newest_step(self.storage)

    def half_written(self) -> Path | None:
        """The newest checkpoint's folder, if it has no manifest."""
        folders = self.folder.glob("checkpoints/*")
        found = sorted((name, folder) for folder in folders if (name := CheckpointName.parse(folder.name)) is not None)
        return found[-1][1] if found and not (found[-1][1] / "manifest.json").exists() else None

    def in_memory(self, checkpoint: str) -> int:
        """Ranks' snapshots for that checkpoint in the node's memory, which nobody has written to the end."""
        sealed = [json.loads(file.read_text()) for file in self.memory.glob("*/node-*/sealed-*.json")]
        return sum(message["checkpoint"] == checkpoint for message in sealed)

    # -- while it runs ----------------------------------------------------------------------------

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        assert self.process is not None
        while not condition():
            code = self.process.poll()
            if code is not None and not condition():
                raise Failed(f"the training ended with exit code {code} before {what}; {self.where()}")
            self._watch()
            time.sleep(_POLL_SECONDS)
        self._tell_lives(self.lives())

    def _watch(self) -> None:
        now = time.monotonic()
        if now - self._said_at < _SAY_SECONDS:
            return
        self._said_at = now
        lives, records = self.lives(), self.records()
        self._tell_lives(lives)
        seen = len(lives), records[-1]["step"] if records else 0
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
            if records:
                self.console.print(f"   step {seen[1]:>3} of {STEPS}, loss {records[-1]['values']['loss']:.2f}")
        elif now - self._seen_at > SILENT_SECONDS:
            raise Failed(f"the training has made no step for {SILENT_SECONDS:.0f} s; {self.where()}")

    def _tell_lives(self, lives: list[Incarnation]) -> None:
        """Each life once, when it has found its place."""
        for before, life in itertools.pairwise(lives):
            if life.number > self._told and "step" in life.began:
                self._told = life.number
                step, reached = int(life.began["step"]), (before.ended or {}).get("step")
                lost = max(0, int(reached) - step) if reached is not None else 0
                again = f"{lost} steps must be trained again" if lost else "nothing was lost"
                self.console.print(f"   life {life.number} goes on after step {step}; {again}")
