"""Runs the lives of a drill on a Slurm cluster: one job, submitted once, that looks after itself.

Law: nothing is started again here. The job is preempted as the cluster preempts (`scontrol requeue`: signals, a grace
time, and its place in the queue), told by `scancel --signal`, or one of its ranks kills itself, its node's daemon, or
all of the job on its node; what follows is its daemons' and Slurm's. A life is an incarnation: moments lie after the
claim.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.drill.driver import TAIL, DrillFailed, Life, Run
from autoresume.drill.schedule import RANKS_SAVE_POINTS, RESTORE_POINTS, SIGNALS, Interruption
from autoresume.errors import EXIT_FINISHED, EXIT_INTERRUPTED
from autoresume.format import names
from autoresume.slurm import commands, queue
from autoresume.slurm.job import ACTIVE
from autoresume.storage.local import LocalStorage

_POLL_SECONDS = 0.2
_AWAY_SECONDS = 10.0
"""A job that was requeued may be in no list for a moment."""


_KILLS = {"kill": "node", "kill-rank": "rank", "kill-daemon": "daemon"}


def for_slurm(one: Interruption) -> Interruption:
    """What of an interruption can be had on a cluster: not in a start-up, which is no life yet; and in a save or a
    restore only where a rank itself comes to, which is killed there."""
    if one.point is not None:
        known = one.point in (*RANKS_SAVE_POINTS, *RESTORE_POINTS)
        return replace(one, action="kill-rank", point=one.point if known else "save.sealed")
    return replace(one, at="step" if one.at == "start" else one.at)


class SlurmRun(Run):
    """`plan.slurm` are the options of `autoresume sbatch`."""

    job: str | None = None

    def life(self, interruption: Interruption | None = None, stop_after: float | None = None) -> Life:
        """Wait for the job's next life, and interrupt it as told; returns when it has ended. Raises DrillFailed."""
        number = len(self.lives) + 1
        began, acted = time.monotonic(), False
        if self.job is None:
            self._tell(number, interruption)
            self._submit()
        away: float | None = None
        while True:
            record = self._record(number)
            told = self.folder / f"reached-{number}.json"
            if interruption is not None and not acted and told.exists():
                acted = True
                self._tell(number + 1, self.coming[number] if number < len(self.coming) else None)
                if interruption.action in SIGNALS:
                    self._signal(interruption)
                (self.folder / f"released-{number}").touch()
            if record is not None and record.ended is not None and (acted or record.ended["how"] == "finished"):
                return self._life_of(number, interruption, record, acted, began)
            now = time.monotonic()
            away = (away or now) if not self._is_active() else None
            if (away is not None and now - away > _AWAY_SECONDS) or now - began > self.plan.life_seconds:
                raise DrillFailed(f"job {self.job} is gone, and life {number} did not end; it said:\n{self._said()}")
            time.sleep(_POLL_SECONDS)

    @property
    def is_over(self) -> bool:
        record = self._record(len(self.lives)) if self.lives else None
        return record is not None and record.ended is not None and record.ended["how"] == "finished"

    # -- the job ----------------------------------------------------------------------------------

    def _submit(self) -> None:
        plan = self.plan
        words = [sys.executable, "-m", "autoresume", "sbatch", "--json", f"--run-dir={self.run_folder}"]
        words += [
            *shlex.split(plan.slurm or ""),
            *(f"--env={name}={value}" for name, value in self._own_variables().items()),
        ]
        done = subprocess.run([*words, plan.script, *plan.arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise DrillFailed(f"the job could not be submitted: {done.stderr}")
        self.job = str(json.loads(done.stdout.splitlines()[0])["job"])

    def _signal(self, interruption: Interruption) -> None:
        assert self.job is not None
        if interruption.action == "term":
            queue.requeue(self.job)
        else:
            commands.run(["scancel", f"--signal={SIGNALS[interruption.action].removeprefix('SIG')}", self.job])

    def _is_active(self) -> bool:
        assert self.job is not None
        return any(view.state in ACTIVE for view in queue.look_at_all(self.job))

    def _tell(self, number: int, interruption: Interruption | None) -> None:
        moment = None
        if interruption is not None:
            moment = self._moment_of(number, interruption)
            moment |= {"point": interruption.point, "kills": _KILLS.get(interruption.action)}
        self._write_life(number, moment)

    # -- what came of it --------------------------------------------------------------------------

    def _record(self, number: int) -> Incarnation | None:
        found = incarnation.history(LocalStorage(self.run_folder)) if self.run_folder.exists() else []
        return found[number - 1] if len(found) >= number else None

    def _said(self) -> str:
        logs = sorted((self.run_folder / names.LOGS).glob("*"))
        return "".join(path.read_text(errors="replace") for path in logs)[-TAIL:]

    def _life_of(
        self, number: int, interruption: Interruption | None, record: Incarnation, came: bool, began: float
    ) -> Life:
        how = (record.ended or {})["how"]
        code = {"finished": EXIT_FINISHED, "interrupted": EXIT_INTERRUPTED}.get(how, 137)
        resumed = int(record.began.get("step") or 0)
        made = self._measured(number, interruption, code, came, resumed, began)
        self.lives.append(made)
        return made
