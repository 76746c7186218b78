"""The job that the node daemon runs in, where Slurm is the batch system.

Law: a thread asks Slurm, so that the daemon's loop never waits for a controller; it asks rarely, and every second
once a signal came. What it learns is a `Notice`. A requeue is asked for only after another look, by the rule of
slurm/job.py, and never when Slurm has done it already.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path

from autoresume.errors import EXIT_INTERRUPTED, AutoresumeError
from autoresume.format import names
from autoresume.node import policy
from autoresume.node.causes import Cause
from autoresume.node.cluster import Notice
from autoresume.slurm import job, queue
from autoresume.slurm.commands import SlurmAway
from autoresume.slurm.environment import Task
from autoresume.slurm.job import JobView, Situation

log = logging.getLogger("autoresume")

REQUEUE_FILE = "requeue"
"""In the job's folder: the batch script, which runs outside of containers, asks Slurm for a requeue when it sees it."""
DONE_FILE = "done"
"""In the job's folder: nothing follows, so that a successor that waits is cancelled."""
_LOOK_SECONDS = 15.0
_HURRY_SECONDS = 1.0
_HURRY_FOR_SECONDS = 15.0
_PATIENCE_SECONDS = 30.0
_KILL_WAIT_SECONDS = 30.0

_CAUSES = {
    Situation.PREEMPTED: Cause.PREEMPTED,
    Situation.PREEMPTED_FOR_GOOD: Cause.PREEMPTED,
    Situation.REQUEUED: Cause.REQUEUED,
    Situation.TIME_LIMIT: Cause.TIME_LIMIT,
    Situation.NODE_FAILURE: Cause.NODE,
    Situation.CANCELLED: Cause.CANCELLED,
}


class SlurmCluster:
    """`folder` is this life's own in the run directory; `successor`: another job waits for the end of this one."""

    def __init__(self, task: Task, folder: Path | None, successor: bool = False) -> None:
        self.task, self.folder, self.successor = task, folder, successor
        self.preempted = False
        self._notice = self._notice_of_environment()
        self._news = self._notice is not None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._hurry_until = 0.0
        self._kill_wait: float | None = None
        self._completing_since: float | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="autoresume-slurm", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody asks Slurm any more; waits for the answer that is on its way."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    @property
    def can_requeue(self) -> bool:
        return True

    def news(self) -> Notice | None:
        with self._lock:
            news, self._news = self._news, False
            return self._notice if news else None

    def hurry(self) -> None:
        self._hurry_until = time.monotonic() + _HURRY_FOR_SECONDS
        self._wake.set()

    def why_stopped(self, why: str) -> Notice:
        notice = self._look(_PATIENCE_SECONDS)
        if notice is None:
            log.warning("Slurm does not answer; what it wants is not known, and the job counts as given back")
            return Notice(cause=Cause.PREEMPTED if self.preempted else Cause.SIGNAL)
        if notice.cause is None and why == policy.LIMIT_IS_NEAR:
            return Notice(end=notice.end, cause=Cause.TIME_LIMIT)
        return notice

    def requeue(self, why: str, exclude: tuple[str, ...]) -> int:
        spelled = self.task.spelled
        if self.successor:
            log.info("%s; the job that waits for this one goes on", why)
            return EXIT_INTERRUPTED
        try:
            view = queue.look(spelled, _PATIENCE_SECONDS)
            if view is None or not job.may_requeue(view, self.task.restart):
                log.info("job %s is not requeued: it is %s", spelled, situation_in_words(view, self.task.restart))
                return EXIT_INTERRUPTED
            configured = "" if exclude else queue.configuration(_PATIENCE_SECONDS).get("RequeueExit", "")
            codes = queue.requeue_codes(configured)
            if (
                codes
                and view.requeue
                and job.situation_of(view, self.task.restart) in (Situation.RUNNING, Situation.PREEMPTED)
            ):
                log.info("exit code %d asks Slurm for it", codes[0])
                self._write(REQUEUE_FILE, why)  # srun's code is another one if a task of it was killed
                return codes[0]
            queue.requeue(spelled, _PATIENCE_SECONDS)
        except AutoresumeError as error:
            log.warning("the requeue from inside of the job failed (%s); the batch script tries it", error)
            self._write(REQUEUE_FILE, why)
            return EXIT_INTERRUPTED
        if exclude:
            self._leave_out(exclude, view.excluded)
        return EXIT_INTERRUPTED

    def _leave_out(self, nodes: tuple[str, ...], already: str) -> None:
        named = ", ".join(nodes)
        try:
            queue.leave_out(self.task.spelled, nodes, already)
            log.warning("%s left out from now on: lives of this run came to a bad end there", named)
        except AutoresumeError as error:
            log.warning("lives of this run came to a bad end on %s, which can't be left out: %s", named, error)

    def ended(self, cause: Cause, why: str) -> None:
        self._write(DONE_FILE, f"{cause.value}: {why}")

    def _write(self, name: str, text: str) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text + "\n")
        except OSError as error:
            log.warning("%s could not be written: %s", self.folder / name, error)

    # -- looking ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closed:
            self._look()
            hurry = time.monotonic() < self._hurry_until
            self._wake.wait(_HURRY_SECONDS if hurry else _LOOK_SECONDS)
            self._wake.clear()

    def _look(self, patience_seconds: float = 0.0) -> Notice | None:
        """Ask Slurm now; None if it does not answer."""
        try:
            view = queue.look(self.task.spelled, patience_seconds)
        except SlurmAway:
            return None
        except AutoresumeError as error:
            log.debug("Slurm can't be asked: %s", error)
            return None
        if view is None:
            return None
        if self._kill_wait is None:
            with contextlib.suppress(AutoresumeError):
                configured = queue.seconds(queue.configuration(patience_seconds).get("KillWait", ""))
                self._kill_wait = _KILL_WAIT_SECONDS if configured is None else configured
        notice = self._notice_of(view)
        with self._lock:
            if notice != self._notice:
                self._notice, self._news = notice, True
        return notice

    def _notice_of_environment(self) -> Notice | None:
        """What Slurm, or the batch script, wrote down of the job's end: all that is known inside of a container."""
        end = self.task.end or job.moment(os.environ.get("AUTORESUME_JOB_END", ""))
        return None if end is None else Notice(end=round(time.monotonic() + end - time.time(), 0))

    def _notice_of(self, view: JobView) -> Notice:
        found = job.situation_of(view, self.task.restart)
        self.preempted = self.preempted or found is Situation.PREEMPTED
        cause = _CAUSES.get(found)
        if found is Situation.REQUEUED and self.preempted:
            cause = Cause.PREEMPTED
        over = found not in (Situation.RUNNING, Situation.PREEMPTED, Situation.PENDING)
        if over and self._completing_since is None:
            self._completing_since = time.monotonic()
        if self._completing_since is not None:
            end: float | None = self._completing_since + (self._kill_wait or _KILL_WAIT_SECONDS)
        else:
            end = None if view.end_time is None else round(time.monotonic() + view.end_time - time.time(), 0)
        return Notice(
            end=end,
            cause=cause,
            requeued=found is Situation.REQUEUED,
            cancelled=found is Situation.CANCELLED,
            over=over or found is Situation.PREEMPTED,
        )


def situation_in_words(view: JobView | None, restart: int) -> str:
    return "forgotten by Slurm" if view is None else f"{job.situation_of(view, restart).value} ({view.state})"


def job_folder(run_folder: Path, task: Task) -> Path:
    """This life's own folder in the run directory: where its daemons meet."""
    return run_folder / names.job_folder(task.life)


def run_folder_of(environment: dict[str, str] | os._Environ[str]) -> Path | None:
    value = environment.get("AUTORESUME_RUN_DIR")
    return Path(value) if value else None
