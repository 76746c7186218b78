"""One incarnation of a run, from opening its folder to its end: everything behind the `Run` handle.

Law: here training, hand-off and storage meet. The order of a start is: signals trapped, folder opened,
ranks joined, number claimed, daemon greeted, checkpoint chosen and read. The order of an end is:
snapshot sealed, commit awaited (where nobody outlives us), record written, signals put back.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoresume.base import code_revision, spans
from autoresume.base.spans import span
from autoresume.checkpoint import incarnation, requests, sidefiles
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.config.command_line import command_line
from autoresume.config.options import Options
from autoresume.errors import (
    EXIT_INTERRUPTED,
    AgreementError,
    AutoresumeError,
    CheckpointInvalid,
    StaleIncarnation,
    UsageError,
)
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.handoff.fence import Order, Phase, RankFence
from autoresume.handoff.signals import SignalTrap, when_parent_dies
from autoresume.load import read_checkpoint
from autoresume.load.read_checkpoint import Restored
from autoresume.ranks import agreement
from autoresume.ranks.agreement import LaggedOrders, Ranks
from autoresume.restore import beginning
from autoresume.restore.beginning import Beginning
from autoresume.run import srun
from autoresume.run.cadence import Cadence, life_seconds, time_between_failures
from autoresume.run.daemon_client import DaemonClient
from autoresume.run.heartbeat import Heartbeat
from autoresume.snapshot.saver import Logged, Saver, SnapshotTaken
from autoresume.snapshot.sinks import DaemonSink, Sink, ThreadSink, await_commit
from autoresume.snapshot.unchanged import Unchanged
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")

_LEAVE_MARGIN_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_MOST_TRACEBACK = 20_000
"""Characters."""


class Session:
    """Opened before the user's code runs; `begin` joins the ranks and claims the incarnation."""

    def __init__(self, options: Options, folder: Path, base: Path | None = None) -> None:
        """`base` is where relative paths of others begin. Raises UsageError if the folder can't be used."""
        self.options = options
        self.folder = folder
        self.base = base or Path.cwd()
        self.storage = LocalStorage(folder)
        self.trap = SignalTrap(options.stop_signals)
        self.trap.install()
        srun.set_rank_variables(folder.absolute())
        if "TORCHELASTIC_RUN_ID" in os.environ:
            # torchrun dies of SIGUSR1 and leaves its ranks behind: for them it is the same signal to stop.
            when_parent_dies(options.stop_signals[0])
        rank, world_size = agreement.ranks_from_environment()
        self.ranks = Ranks(rank, world_size)  # what the launcher says; `begin` asks the process group
        self.number = 0
        self.run_id, self.seed = self._open_run()
        self.daemon = DaemonClient.of_environment()
        self.cadence = Cadence(options.save_steps, options.save_seconds, time.monotonic())
        self.failed_checkpoints: set[str] = set()
        self.stale: str | None = None
        self.known_identities: dict[str, dict[str, str]] = {}
        self.code: dict[str, Any] = {}
        self._run_lock = threading.Lock()
        self.beginning: Beginning | None = None
        """What a new run took over from elsewhere in this life."""
        self.stop_reason: str | None = None
        """Why the run's user wants it to stop, if that is so."""
        self._heart: Heartbeat | None = None
        self._step_seconds = 1.0
        self._last_boundary: float | None = None
        self.last_step = 0
        self._next_look = 0.0

    # -- the beginning ----------------------------------------------------------------------------

    def _open_run(self) -> tuple[str, int]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            seed = self.options.seed if self.options.seed is not None else secrets.randbits(48)
            made = {
                "format_version": names.FORMAT_VERSION,
                "run_id": secrets.token_hex(6),
                "seed": seed,
                "created": time.time(),
                "command": command_line(),
                "stage": self.options.stage,
                "loggers": {},
            }
            self.storage.create(names.RUN, json.dumps(made, indent=1).encode() + b"\n")
            found = json.loads(self.storage.read(names.RUN))
            return str(found["run_id"]), int(found["seed"] if self.options.seed is None else self.options.seed)
        except OSError as error:
            raise UsageError(
                f"the run directory {self.folder} can't be used: {error.strerror or error}. Choose another one with "
                "run_dir=..., or AUTORESUME_RUN_DIR."
            ) from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"{self.folder / names.RUN} is damaged ({error}); restore it or choose another run_dir"
            ) from error

    def finished(self) -> Incarnation | None:
        """The incarnation that finished this run, if one did, and nobody asks to go on all the same: by `continue`, in
        other words than those that it was started with."""
        numbers = incarnation.numbers(self.storage)
        if not numbers:
            return None
        try:
            record = incarnation.read(self.storage, numbers[-1])
        except (CheckpointInvalid, OSError):
            return None
        if record.ended is None or record.ended["how"] != "finished":
            return None
        request = self.options.restore
        same = record.began.get("restore") == request.to_json() and record.command == command_line()
        return None if request.mode == "continue" and not same else record

    def make_process_group(self) -> None:
        """The default process group, where the option `backend` leaves it to us from the start; also of one rank, for
        scripts that wrap their model whatever the size."""
        if self.options.backend is not None:
            agreement.init_process_group(self.options.backend)

    def begin(self, objects: Mapping[str, Any]) -> Restored | None:
        """Join the others, claim the incarnation, and read the checkpoint that all agreed on.

        Every rank must call it. Raises RunIsLive, NoValidCheckpoint, AgreementError.
        """
        self.ranks = Ranks.join(self.options.backend)
        self.trap.install()  # a framework may have put its own handlers on since
        if self.ranks.rank == 0 and sys.argv and sys.argv[0]:
            self.code = code_revision.fingerprint(Path(sys.argv[0]).absolute())
        self.previous = incarnation.history(self.storage)[-1:] if self.ranks.rank == 0 else []
        if self.daemon is not None:
            # It settles what the last life left before a claim makes that stale.
            self.daemon.register(self.ranks, self.folder, self.options)
        self.number = int(
            read_checkpoint.ask_rank_0(self.ranks, self._claim if self.ranks.rank == 0 else None)["number"]
        )
        self.guard = incarnation.guard(self.storage, self.number)
        self.fence: RankFence | None = None
        self.lagged = LaggedOrders(self.ranks)
        sink = self._make_sink()
        folder = self.daemon.folder if self.daemon else None
        unchanged = Unchanged(looks=self.options.unchanged == "link")
        self.saver = Saver(self.run_id, self.ranks, sink, folder, self._thread_sink, unchanged)
        if self.ranks.rank == 0:
            self.cadence.failure_seconds = self._failure_seconds()
            self._heart = Heartbeat(self)
        restored = self._choose_checkpoint(objects)
        if restored is not None:
            unchanged.resume(restored.unchanged)
        if self.daemon is not None:
            self.daemon.release_kept_snapshots()
        if self.ranks.rank == 0:
            self._record_beginning(restored)
        return restored

    def _choose_checkpoint(self, objects: Mapping[str, Any]) -> Restored | None:
        """The run's own newest checkpoint; where it has none, the one of another that it begins with."""
        request, first = self.options.restore, self.ranks.rank == 0
        told = (
            read_checkpoint.ask_rank_0(self.ranks, self._decide_beginning if first else None)["beginning"]
            if request.mode
            else None
        )
        into_live = not (request.fresh or request.lenient)
        mailbox = self.daemon.mailbox if self.daemon else None
        restored = read_checkpoint.choose_and_read(
            self.storage, self.run_id, self.ranks, self.guard, objects, mailbox, into_live
        )
        if restored is not None or told is None:
            return restored
        self.beginning = begin = Beginning.of(told)
        if first:
            self._inherit_loggers(begin)
        if begin.checkpoint is None or begin.mode == "finetune":
            return None
        return read_checkpoint.read_chosen(begin.storage, begin.checkpoint, self.ranks, objects, None, into_live)

    def _inherit_loggers(self, begin: Beginning) -> None:
        """What `continue` goes on in, and what the others' logging runs have for a parent."""
        loggers = dict(dict(begin.about.get("run") or {}).get("loggers") or {})
        parent = {"run_id": begin.run_id, "origin": begin.description, "loggers": loggers}
        self.change_run(loggers=loggers, parent=None) if begin.mode == "continue" else self.change_run(parent=parent)

    def _decide_beginning(self) -> dict[str, Any]:
        found = beginning.decide_beginning(self.options, self.folder, self.base, self.storage, self.guard, self.number)
        return {"beginning": found.to_json() if found else None}

    def _claim(self) -> dict[str, Any]:
        own = [incarnation.this_process()] + ([self.daemon.process] if self.daemon else [])

        requests.clear(self.storage, min(started for _, started in own))

        def make(number: int) -> Incarnation:
            return Incarnation(
                number=number,
                run_id=self.run_id,
                host=socket.gethostname(),
                boot=incarnation.boot_id(),
                processes=own,
                world_size=self.ranks.world_size,
                command=command_line(),
                job=incarnation.current_job(),
                began={"time": incarnation.this_process()[1]},
            )

        return {"number": incarnation.claim(self.storage, make, own).number}

    def _failure_seconds(self) -> float:
        """Of the lives of this run before this one."""
        past = [record for record in incarnation.history(self.storage) if record.number < self.number]
        return time_between_failures(
            life_seconds(one, incarnation.last_sign_of_life(self.storage, one.number)) for one in past
        )

    def _thread_sink(self) -> Sink:
        return ThreadSink(self.storage, self.options.retention, self.guard)

    def _make_sink(self) -> Sink:
        if self.daemon is None:
            return self._thread_sink()
        self.daemon.report_incarnation(self.number)
        self.fence = RankFence(self.daemon.folder / "fence", self.daemon.slot, self.daemon.is_alive)
        return DaemonSink(self.daemon.mailbox, self.folder.absolute(), self.daemon.process, incarnation.process_lives)

    def put_back_files(self, restored: Restored | None) -> None:
        """Side files as they were at the restored checkpoint; every rank calls it, and sees them afterwards."""
        if self.ranks.rank == 0 and self.beginning is not None and restored is not None:
            there = self.beginning.storage
            for file in restored.files:
                self.storage.write(file, there.read(restored.manifest.checkpoint.inside(file)))
        elif self.ranks.rank == 0:
            name, files = (restored.manifest.checkpoint, restored.files) if restored else (None, ())
            gone = sidefiles.restore_files(self.storage, name, files, self.number)
            if gone:
                log.info("side files that are newer than the checkpoint are put aside: %s", ", ".join(gone))
        self.ranks.gather(None)

    def _record_beginning(self, restored: Restored | None) -> None:
        name = str(restored.manifest.checkpoint) if restored else None
        step = restored.manifest.checkpoint.step if restored else 0

        self.last_step = step
        now = self.code or None
        changed = code_revision.difference(self.previous[0].began.get("code"), now) if self.previous and now else None
        if changed:
            log.warning("the code is another one than in life %d: %s", self.previous[0].number, changed)
        best = self.options.best
        self.change_run(best=vars(best) if best else None)

        request = self.options.restore.to_json() if self.options.restore.mode else None

        def change(record: Incarnation) -> None:
            record.began.update(time=record.began["time"], step=step, checkpoint=name, code=now, restore=request)
            if self.beginning is not None:
                record.began["origin"] = self.beginning.description

        incarnation.update(self.storage, self.number, change)

    def record_end_of_previous(self, last_step: int | None) -> None:
        """Rank 0: write down how the previous incarnation ended if nobody was left to do it."""
        for record in self.previous:
            if record.ended is None:
                why = "no word of its end: killed, or its node was lost"
                heard = incarnation.last_sign_of_life(self.storage, record.number)
                more = {} if heard is None else {"time": heard}
                incarnation.record_end(self.storage, record.number, "died", last_step, why, more)

    def identities(self) -> dict[str, dict[str, str]]:
        """What the loggers call this run, from run.json."""
        found = json.loads(self.storage.read(names.RUN)).get("loggers", {})
        self.known_identities = {key: dict(value) for key, value in found.items()}
        return {key: dict(value) for key, value in found.items()}

    def remember_identities(self, identities: Mapping[str, Mapping[str, str]]) -> None:
        """Raises StaleIncarnation: a logger may be opened late, when another life goes on already."""
        self.guard()
        self.known_identities = {key: dict(value) for key, value in identities.items()}
        self.change_run(loggers=self.known_identities)

    def change_run(self, **values: Any) -> None:
        """Rank 0: write what run.json says of these."""
        with self._run_lock:
            before = json.loads(self.storage.read(names.RUN))
            if any(before.get(key) != value for key, value in values.items()):
                self.storage.write(names.RUN, json.dumps({**before, **values}, indent=1).encode() + b"\n")

    def parent(self) -> dict[str, Any]:
        """The run that this one began from, from run.json: run_id, origin (in words), loggers (its identities)."""
        return dict(json.loads(self.storage.read(names.RUN)).get("parent") or {})

    def note_progress(self) -> None:
        """For `autoresume status`: where the training is."""
        now, cadence = time.monotonic(), self.cadence
        due = cadence.next_in_words(self.last_step, now)
        value = {
            "time": time.time(),
            "incarnation": self.number,
            "step": self.last_step,
            "step_seconds": round(self._step_seconds, 4) if self._last_boundary is not None else None,
            "next_save": due,
            "save_cost_seconds": cadence.cost_seconds,
            "save_durable_seconds": cadence.durable_seconds,
            "failure_seconds": cadence.failure_seconds if cadence.is_auto else None,
            "save_every_seconds": None if cadence.steps is not None else cadence.interval_seconds,
        }
        self.storage.write(names.PROGRESS, json.dumps(value).encode())

    def note_first_step(self) -> None:
        if self.ranks.rank == 0:
            now = time.time()
            try:
                incarnation.update(
                    self.storage,
                    self.number,
                    lambda record: record.began.update(first_step_seconds=round(now - record.began["time"], 3)),
                )
            except (OSError, CheckpointInvalid) as error:
                log.warning("when the first step was taken could not be written down: %s", error)

    # -- the boundary -----------------------------------------------------------------------------

    def at_boundary(self, step: int) -> Order:
        """What all ranks do after `step`. A few microseconds when it is nothing."""
        now = time.monotonic()
        if self._last_boundary is not None:
            self._step_seconds += 0.2 * (now - self._last_boundary - self._step_seconds)
        self._last_boundary, self.last_step = now, step
        self.saver.at_boundary()
        self.trap.install()  # a framework may have put its own handlers on since
        if self.stale is not None:
            raise StaleIncarnation(self.stale)
        wish = Order.NOTHING
        if self.trap.first is not None or self.stop_reason is not None:
            wish = Order.STOP
        elif self.ranks.rank == 0 and self.cadence.due_by_time(now) and self._last_save_is_durable(now):
            wish = Order.SAVE
        if self.fence is not None and now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._check_daemon()
        with span("agreement"):
            if self.fence is not None:
                if wish:
                    self.fence.request(wish)
                order = self.fence.at_boundary(step)
            else:
                if wish:
                    self.lagged.request(wish)
                order = self.lagged.at_boundary(step, self._step_seconds)
        if order is Order.NOTHING and self.cadence.due_by_step(step):
            order = Order.SAVE
        return order

    def _last_save_is_durable(self, now: float) -> bool:
        """False where the interval is ours to choose, and the last save has yet to become durable, or took long."""
        if not self.cadence.is_auto:
            return True
        if not self.saver.sink.idle():
            return False
        self.note_outcomes()
        return self.cadence.due_by_time(now)

    def _check_daemon(self) -> None:
        if self.saver.sink.alive():
            return
        if self.ranks.world_size > 1:
            raise AgreementError(
                "the node daemon is gone, and with it the ranks' way to agree on a step; start the same command again, "
                "and the run goes on from its last checkpoint"
            )
        self.saver.fall_back("the node daemon is gone; this rank saves by itself from now on")
        self.fence = None

    def save(
        self,
        name: CheckpointName,
        objects: Mapping[str, Any],
        promised: frozenset[str],
        about: dict[str, Any],
        logged: Callable[[], Logged],
        urgent: bool,
    ) -> SnapshotTaken:
        files = sidefiles.copy_into(self.storage, name) if self.ranks.rank == 0 else ()
        waited = self.saver.joined_seconds  # for the save before this one
        taken = self.saver.save(name, objects, promised, about, files, urgent, logged)
        self.cadence.note_saved(time.monotonic(), taken.stall_seconds + waited)
        self.note_outcomes()
        return taken

    def note_outcomes(self) -> set[str]:
        """Tell of snapshots that failed to become checkpoints; the names of all that did so far."""
        self.failed_checkpoints |= self.saver.torn
        outcomes = self.saver.sink.outcomes()
        durable = [outcome.seconds for outcome in outcomes if outcome.problem is None]
        if durable:
            self.cadence.note_durable(max(durable))
        for outcome in outcomes:
            spans.add_recorded(outcome.spans)
            if outcome.problem is not None:
                self.failed_checkpoints.add(outcome.checkpoint)
                log.warning("checkpoint %s was not saved: %s", outcome.checkpoint, outcome.problem)
                if outcome.problem.startswith("StaleIncarnation"):
                    self.stale = outcome.problem
        return self.failed_checkpoints

    def await_commit(self, name: CheckpointName, deadline: float = float("inf")) -> bool:
        self.saver.finish_handover()
        return await_commit(self.storage, name, self.saver.sink, self.note_outcomes, self.guard, deadline, self.ranks)

    @property
    def leave_by(self) -> float:
        """The monotonic moment at which a stopping rank must be gone."""
        return self.trap.since + self.options.grace - _LEAVE_MARGIN_SECONDS if self.trap.first else float("inf")

    def wait_for_all_ranks(self, step: int) -> tuple[Order, int]:
        """Wait until all ranks have left their loops; or an order meanwhile, with the step that it names."""
        self.saver.finish_handover()
        if self.fence is not None:
            self.fence.publish(step, Phase.LEFT)
            while True:
                closed = self.fence.closed()  # looked at first: the word that stands after it is the last one
                order = self.fence.after_loop(step)
                if order is not Order.NOTHING:
                    return order, self.fence.target()
                if closed:
                    return Order.NOTHING, step
                if not self.saver.sink.alive():
                    raise AgreementError("the node daemon is gone")
                time.sleep(0.002)
        while True:
            order, done = self.lagged.after_loop(self._step_seconds)
            if order is not Order.NOTHING or done:
                return order, step
            time.sleep(0.002)

    # -- the end ----------------------------------------------------------------------------------

    def end(self, how: str, step: int, why: str) -> None:
        """Write down how this incarnation ended, and give everything back. Never raises for storage's sake."""
        if self._heart is not None:
            self._heart.stop()
        if self.number:
            self.saver.finish_handover()
        if self.daemon is not None and self.number:
            bye = {"how": how, "step": step, "why": why, "time": time.time(), "traceback": _traceback(how)}
            self.daemon.mailbox.send(f"bye-{self.daemon.slot}", bye)
        if self.number:
            self.saver.close()
            self.note_outcomes()
            if self.ranks.rank == 0 and (self.daemon is None or not self.saver.sink.alive()):
                # A daemon sees all ranks end, and writes it down by itself.
                try:
                    incarnation.record_end(self.storage, self.number, how, step, why)
                    if how == "interrupted" and self.daemon is None:
                        srun.requeue_if_needed(self.folder.absolute(), why)
                except (OSError, AutoresumeError) as error:
                    log.warning("how this incarnation ended could not be written down: %s", error)
        self.trap.restore()

    @property
    def exit_code(self) -> int:
        """Of an interrupted rank. torchrun would take any failure as a reason to kill the others: to its
        ranks the daemon's word counts, and they leave with 0."""
        return 0 if self.daemon is not None and "TORCHELASTIC_RUN_ID" in os.environ else EXIT_INTERRUPTED


def _traceback(how: str) -> str | None:
    """Of the exception that is being handled, if this life ends by one."""
    if how != "failed" or sys.exc_info()[0] is None:
        return None
    return traceback.format_exc()[-_MOST_TRACEBACK:]
