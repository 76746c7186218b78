"""Runs the lives of a drill, and ends them as the schedule says.

Law: the command is the user's, unchanged; each life is `autoresume run --once` in a run directory of the drill's own.
The rank that comes to the moment waits until what was to be done is done. Nothing is slept for, and what was started
here is ended here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from autoresume.checkpoint.discover import newest_step
from autoresume.drill.record import Trajectory, read
from autoresume.drill.schedule import SIGNALS, Interruption
from autoresume.errors import EXIT_FINISHED, EXIT_INTERRUPTED, AutoresumeError
from autoresume.node import processes
from autoresume.storage.local import LocalStorage

_POLL_SECONDS = 0.01
_LIMIT_GRACE_SECONDS = 1.0
_HEARD, _HEARD_SECONDS = b"stop at a common step", 5.0
TAIL = 3000
"""Characters of a life's output in an error."""


class DrillFailed(AutoresumeError):
    """A life ended as nobody wanted it to; the message has the end of what it said."""


@dataclass(frozen=True)
class Life:
    """One life of the drilled run."""

    number: int
    interruption: Interruption | None
    code: int
    came: bool
    """The moment came."""
    reached_step: int
    """Steps completed when it ended."""
    resumed_step: int
    """At which it began."""
    first_step_seconds: float | None
    """From the start of the command to the end of its first step."""
    seconds: float
    ranks: int = 1

    @property
    def trained_on(self) -> bool:
        """It went on from a checkpoint, and made a step."""
        return self.resumed_step > 0 and self.first_step_seconds is not None

    @property
    def words(self) -> str:
        return self.interruption.words() if self.interruption is not None else "to the end"


@dataclass
class Plan:
    script: str
    arguments: Sequence[str]
    folder: Path
    ranks: int = 1
    sizes: Sequence[int] = ()
    """Ranks of each life, one after the other; the last one stays. Without any, all have `ranks`."""
    grace: float = 30.0
    slurm: str | None = None
    """Options of `autoresume sbatch`, where the lives are a job's."""
    until: int | None = None
    save_every: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    life_seconds: float = 3600.0
    """After so long without an end a life is taken for hanging."""


class Run:
    """One run of the drill, in a folder of its own: `name`/run has the run directory, `name`/records the records."""

    def __init__(
        self, plan: Plan, name: str, fix: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        self.plan, self.name, self.fix = plan, name, list(fix)
        self.folder = plan.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lives: list[Life] = []
        self.coming: list[Interruption] = []
        """All that will be asked for, where a life begins by itself when the one before it has ended."""
        self._variables = dict(variables or {})

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    @property
    def trajectory(self) -> Trajectory:
        return read(self.folder / "records")

    def life(self, interruption: Interruption | None = None, stop_after: float | None = None) -> Life:
        """Start the command, and interrupt it as told, or after so many seconds of training; returns when it has ended.

        Raises DrillFailed where it fails by itself, or hangs.
        """
        number = len(self.lives) + 1
        resumed = newest_step(LocalStorage(self.run_folder)) if self.run_folder.exists() else 0
        began = time.monotonic()
        log = self.folder / f"life-{number}.log"
        child = self._start(number, interruption, log)
        came, acted, stepped = False, None, None
        try:
            while child.poll() is None:
                now = time.monotonic()
                told = self.folder / f"reached-{number}.json"
                if interruption is not None and not came and told.exists():
                    came, acted = True, now
                    self._act(interruption, child, json.loads(told.read_text()))
                if acted is not None and (now - acted > _HEARD_SECONDS or self._was_heard(interruption, log)):
                    (self.folder / f"released-{number}").touch()
                    acted = None
                if stop_after is not None and stepped is None and self.trajectory.last_step:
                    stepped = now
                if stop_after is not None and stepped is not None and now - stepped > stop_after:
                    child.send_signal(signal.SIGTERM)
                    stop_after, came = None, True
                if now - began > self.plan.life_seconds:
                    raise DrillFailed(f"life {number} did not end within {now - began:.0f} s; see {log}")
                time.sleep(_POLL_SECONDS)
        finally:
            self.end(child)
        code = child.returncode
        if (
            interruption is not None
            and interruption.point is not None
            and code not in (EXIT_FINISHED, EXIT_INTERRUPTED)
        ):
            came = True
        self._check(number, code, came, log)
        made = self._measured(number, interruption, code, came, resumed, began)
        self.lives.append(made)
        return made

    def _start(self, number: int, interruption: Interruption | None, log: Path) -> subprocess.Popen[bytes]:
        plan = self.plan
        environment = {**os.environ, **self._own_variables(), "AUTORESUME_RUN_DIR": str(self.run_folder)}
        if interruption is not None and interruption.point is not None:
            environment["AUTORESUME_FAILPOINT"] = interruption.point
        self._write_life(number, self._moment(number, interruption))
        grace = plan.grace
        if interruption is not None and interruption.action == "limit":
            grace = min(grace, _LIMIT_GRACE_SECONDS)
        return self.start(environment, self._ranks(number), grace, log)

    def _own_variables(self) -> dict[str, str]:
        own = {**self.plan.environment, **self._variables}
        own |= {"AUTORESUME_DRILL": str(self.folder), "AUTORESUME_LOGGERS": "csv"}
        return own if self.plan.save_every is None else {**own, "AUTORESUME_SAVE_EVERY": self.plan.save_every}

    def _moment(self, number: int, interruption: Interruption | None) -> dict[str, Any] | None:
        if interruption is None or interruption.point is not None:
            return None
        return self._moment_of(number, interruption)

    def _moment_of(self, number: int, interruption: Interruption) -> dict[str, Any]:
        rank = interruption.rank % self._ranks(number)
        return {"at": interruption.at, "step": interruption.step, "rank": rank}

    def _write_life(self, number: int, moment: dict[str, Any] | None) -> None:
        """What the ranks of that life are told. Whoever reads it reads all of it."""
        life = {
            "life": number,
            "records": str(self.folder / "records"),
            "until": self.plan.until,
            "fix": self.fix,
            "moment": moment,
        }
        temporary = self.folder / "life.tmp"
        temporary.write_text(json.dumps(life))
        temporary.rename(self.folder / "life.json")

    def _ranks(self, life: int) -> int:
        sizes = self.plan.sizes
        return sizes[min(life, len(sizes)) - 1] if sizes else self.plan.ranks

    def start(self, environment: dict[str, str], ranks: int, grace: float, log: Path) -> subprocess.Popen[bytes]:
        """The command, as a child that ends when the life has ended."""
        plan = self.plan
        command = [sys.executable, "-m", "autoresume", "run", "--once", "--nproc", str(ranks)]
        command += ["--grace", str(grace), plan.script, *plan.arguments]
        with log.open("wb") as output:
            return processes.spawn(command, environment, signal.SIGTERM, output)

    def end(self, child: subprocess.Popen[bytes]) -> None:
        """Nothing of the life is left."""
        if child.poll() is None:
            child.kill()
        child.wait()
        processes.kill_tree()

    @staticmethod
    def _was_heard(interruption: Interruption | None, log: Path) -> bool:
        """Of a signal: the daemon says so. A training of short steps could else be over before it is."""
        return interruption is None or interruption.action not in SIGNALS or _HEARD in log.read_bytes()

    def _act(self, interruption: Interruption, child: subprocess.Popen[bytes], told: Mapping[str, Any]) -> None:
        if interruption.action in SIGNALS:
            child.send_signal(getattr(signal, SIGNALS[interruption.action]))
            return
        try:
            tree = psutil.Process(child.pid).children(recursive=True)
            victims = [psutil.Process(int(told["pid"]))]
            if interruption.action == "kill":
                victims = tree
            elif interruption.action == "kill-daemon":
                victims = psutil.Process(child.pid).children()[:1]
        except psutil.NoSuchProcess:
            return
        for one in victims:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue

    def _check(self, number: int, code: int, came: bool, log: Path) -> None:
        if code in (EXIT_FINISHED, EXIT_INTERRUPTED) or came:
            return
        said = log.read_text(errors="replace")[-TAIL:]
        raise DrillFailed(
            f"life {number} of {self.name} failed with exit code {code}, and nobody had interrupted it; it said:\n"
            f"{said}\n"
            f"All of it is in {log}."
        )

    def _measured(
        self, number: int, interruption: Interruption | None, code: int, came: bool, resumed: int, began: float
    ) -> Life:
        trajectory = self.trajectory
        lines = [
            line
            for steps in trajectory.steps.values()
            for each in steps.values()
            for line in each
            if line["life"] == number
        ]
        begun = [line["step"] for begins in trajectory.begins.values() for line in begins if line["life"] == number]
        return Life(
            number=number,
            interruption=interruption,
            code=code,
            came=came,
            reached_step=max((line["step"] for line in lines), default=max(begun, default=resumed)),
            resumed_step=max(begun, default=resumed),
            first_step_seconds=min((line["time"] for line in lines), default=began) - began if lines else None,
            seconds=time.monotonic() - began,
            ranks=self._ranks(number),
        )

    @property
    def is_over(self) -> bool:
        """The training came to its end, or to the step at which the drill ends."""
        if not self.lives:
            return False
        last = self.lives[-1]
        until = self.plan.until
        return (last.code == EXIT_FINISHED and not last.came) or (until is not None and last.reached_step >= until)
