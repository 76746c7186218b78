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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoresume.cadence import Cadence
from autoresume.checkpoint import incarnation, sidefiles
from autoresume.checkpoint.incarnation import Incarnation
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
from autoresume.handoff.mailbox import NODE_FOLDER_VARIABLE, Mailbox
from autoresume.handoff.signals import SignalTrap, when_parent_dies
from autoresume.options import Options
from autoresume.storage.local import LocalStorage
from autoresume.training import agreement, restore
from autoresume.training.agreement import LaggedOrders, Ranks
from autoresume.training.restore import Restored
from autoresume.training.saver import Saver, Taken
from autoresume.training.sinks import DaemonSink, Sink, ThreadSink, await_commit

log = logging.getLogger("autoresume")

_WELCOME_SECONDS = 600.0
_LEAVE_MARGIN_SECONDS = 1.0
_LOOK_SECONDS = 1.0


class Session:
    """Opened before the user's code runs; `begin` joins the ranks and claims the incarnation."""

    def __init__(self, options: Options, folder: Path) -> None:
        """Raises UsageError if the folder can't be used."""
        self.options = options
        self.folder = folder
        self.storage = LocalStorage(folder)
        self.trap = SignalTrap(options.stop_signals)
        self.trap.install()
        if "TORCHELASTIC_RUN_ID" in os.environ:
            # torchrun dies of SIGUSR1 and leaves its ranks behind: for them it is the same signal to stop.
            when_parent_dies(options.stop_signals[0])
        rank, world_size = agreement.environment_ranks()
        self.ranks = Ranks(rank, world_size)  # what the launcher says; `begin` asks the process group
        self.number = 0
        self.run_id, self.seed = self._open_run()
        self.node = _Node.of_environment()
        self.cadence = Cadence(options.save_steps, options.save_seconds, time.monotonic())
        self.problems: set[str] = set()
        self.stale: str | None = None
        self._heart: _Heart | None = None
        self._step_seconds = 1.0
        self._last_boundary: float | None = None
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
                "command": sys.argv,
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
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self.folder / names.RUN} is damaged ({error}); restore it or choose another run_dir"
            ) from error

    def finished(self) -> Incarnation | None:
        """The incarnation that finished this run, if one did."""
        numbers = incarnation.numbers(self.storage)
        if not numbers:
            return None
        try:
            record = incarnation.read(self.storage, numbers[-1])
        except (CheckpointInvalid, OSError):
            return None
        return record if record.ended is not None and record.ended["how"] == "finished" else None

    def make_process_group(self) -> None:
        """The default process group, where the option `backend` leaves it to us from the start."""
        if self.options.backend is not None and self.ranks.world_size > 1:
            agreement.initialise(self.options.backend)

    def begin(self, boxes: Callable[[], Mapping[str, Any]]) -> Restored | None:
        """Join the others, claim the incarnation, and read the checkpoint that all agreed on.

        Every rank must call it. Raises RunIsLive, NoValidCheckpoint, AgreementError.
        """
        self.ranks = Ranks.join(self.options.backend)
        self.trap.install()  # a framework may have put its own handlers on since
        self.previous = incarnation.history(self.storage)[-1:] if self.ranks.rank == 0 else []
        self.number = int(restore.told(self.ranks, self._claim if self.ranks.rank == 0 else None)["number"])
        self.guard = incarnation.guard(self.storage, self.number)
        self.fence: RankFence | None = None
        self.lagged = LaggedOrders(self.ranks)
        sink = self._make_sink()
        folder = self.node.folder if self.node else None
        self.saver = Saver(self.run_id, self.ranks, sink, folder, self._thread_sink)
        if self.ranks.rank == 0:
            self._heart = _Heart(self)
        restored = restore.choose_and_read(self.storage, self.run_id, self.ranks, self.guard, boxes)
        if self.ranks.rank == 0:
            self._record_beginning(restored)
        return restored

    def _claim(self) -> dict[str, Any]:
        own = [incarnation.this_process()] + ([self.node.daemon] if self.node else [])

        def make(number: int) -> Incarnation:
            return Incarnation(
                number=number,
                run_id=self.run_id,
                host=socket.gethostname(),
                boot=incarnation.boot_id(),
                processes=own,
                world_size=self.ranks.world_size,
                command=sys.argv,
                job=incarnation.current_job(),
                began={"time": incarnation.this_process()[1]},
            )

        return {"number": incarnation.claim(self.storage, make, own).number}

    def _thread_sink(self) -> Sink:
        return ThreadSink(self.storage, self.options.retention, self.guard)

    def _make_sink(self) -> Sink:
        if self.node is None:
            return self._thread_sink()
        self.node.greet(self)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if local == self.ranks.world_size:
            # All ranks live on this node: the fence serves. Across nodes the daemons do not agree yet,
            # and the ranks do it among themselves.
            self.fence = RankFence(self.node.folder / "fence", self.node.local_rank)
        return DaemonSink(self.node.mailbox, self.folder.absolute(), self.node.daemon, incarnation.process_lives)

    def put_back_files(self, restored: Restored | None) -> None:
        """Side files as they were at the restored checkpoint; every rank calls it, and sees them afterwards."""
        if self.ranks.rank == 0:
            name, files = (restored.manifest.checkpoint, restored.files) if restored else (None, ())
            gone = sidefiles.put_back(self.storage, name, files, self.number)
            if gone:
                log.info("side files that are newer than the checkpoint are put aside: %s", ", ".join(gone))
        self.ranks.gather(None)

    def _record_beginning(self, restored: Restored | None) -> None:
        name = str(restored.manifest.checkpoint) if restored else None
        step = restored.manifest.checkpoint.step if restored else 0

        def change(record: Incarnation) -> None:
            record.began.update(time=record.began["time"], step=step, checkpoint=name)

        incarnation.update(self.storage, self.number, change)

    def bury_previous(self, last_step: int | None) -> None:
        """Rank 0: write down how the previous incarnation ended if nobody was left to do it."""
        for record in self.previous:
            if record.ended is None:
                incarnation.end(
                    self.storage, record.number, "died", last_step, "no word of its end: killed, or its node was lost"
                )

    def identities(self) -> dict[str, dict[str, str]]:
        """What the loggers call this run, from run.json."""
        found = json.loads(self.storage.read(names.RUN)).get("loggers", {})
        return {key: dict(value) for key, value in found.items()}

    def remember_identities(self, identities: Mapping[str, Mapping[str, str]]) -> None:
        value = json.loads(self.storage.read(names.RUN))
        if value.get("loggers") != identities:
            self.storage.write(names.RUN, json.dumps({**value, "loggers": identities}, indent=1).encode() + b"\n")

    def note_first_step(self) -> None:
        if self.ranks.rank == 0:
            now = time.time()
            incarnation.update(
                self.storage,
                self.number,
                lambda record: record.began.update(first_step_seconds=round(now - record.began["time"], 3)),
            )

    # -- the boundary -----------------------------------------------------------------------------

    def boundary(self, step: int) -> Order:
        """What all ranks do after `step`. A few microseconds when it is nothing."""
        now = time.monotonic()
        if self._last_boundary is not None:
            self._step_seconds += 0.2 * (now - self._last_boundary - self._step_seconds)
        self._last_boundary = now
        self.trap.install()  # a framework may have put its own handlers on since
        if self.stale is not None:
            raise StaleIncarnation(self.stale)
        wish = Order.NOTHING
        if self.trap.first is not None:
            wish = Order.STOP
        elif self.ranks.rank == 0 and self.cadence.due_by_time(now):
            wish = Order.SAVE
        if self.fence is not None and now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._look_after_daemon()
        if self.fence is not None:
            if wish:
                self.fence.wish(wish)
            order = self.fence.at(step)
        else:
            if wish:
                self.lagged.wish(wish)
            order = self.lagged.at(step, self._step_seconds)
        if order is Order.NOTHING and self.cadence.due_by_step(step):
            order = Order.SAVE
        return order

    def _look_after_daemon(self) -> None:
        if self.saver.sink.alive():
            return
        if self.ranks.world_size > 1:
            raise AgreementError(
                "the node daemon is gone, and with it the ranks' way to agree on a step; start the same command again, "
                "and the run goes on from its last checkpoint"
            )
        self.saver.use_fallback("the node daemon is gone; this rank saves by itself from now on")
        self.fence = None

    def save(
        self, name: CheckpointName, objects: Mapping[str, Any], promised: frozenset[str], about: dict[str, Any]
    ) -> Taken:
        files = sidefiles.enclose(self.storage, name) if self.ranks.rank == 0 else ()
        sync = (names.JOURNAL,) if self.ranks.rank == 0 else ()
        taken = self.saver.save(name, objects, promised, about, files, sync)
        self.cadence.saved(time.monotonic(), taken.stall_seconds)
        self.note_outcomes()
        return taken

    def note_outcomes(self) -> set[str]:
        """Tell of snapshots that failed to become checkpoints; the names of all that did so far."""
        for outcome in self.saver.sink.outcomes():
            if outcome.problem is not None:
                self.problems.add(outcome.checkpoint)
                log.warning("checkpoint %s was not saved: %s", outcome.checkpoint, outcome.problem)
                if outcome.problem.startswith("StaleIncarnation"):
                    self.stale = outcome.problem
        return self.problems

    def await_commit(self, name: CheckpointName, deadline: float = float("inf")) -> bool:
        return await_commit(self.storage, name, self.saver.sink, self.note_outcomes, self.guard, deadline)

    @property
    def leave_by(self) -> float:
        """The monotonic moment at which a stopping rank must be gone."""
        return self.trap.since + self.options.grace - _LEAVE_MARGIN_SECONDS if self.trap.first else float("inf")

    def rest(self, step: int) -> tuple[Order, int]:
        """Wait until all ranks have left their loops; or an order meanwhile, with the step that it names."""
        if self.fence is not None:
            self.fence.publish(step, Phase.LEFT)
            while True:
                left = self.fence.all_left()  # looked at first: the word that stands after it is the last one
                order = self.fence.at_rest(step)
                if order is not Order.NOTHING:
                    return order, self.fence.target()
                if left:
                    return Order.NOTHING, step
                if not self.saver.sink.alive():
                    raise AgreementError("the node daemon is gone")
                time.sleep(0.002)
        while True:
            order, done = self.lagged.rest(self._step_seconds)
            if order is not Order.NOTHING or done:
                return order, step
            time.sleep(0.002)

    # -- the end ----------------------------------------------------------------------------------

    def end(self, how: str, step: int, why: str) -> None:
        """Write down how this incarnation ended, and give everything back. Never raises for storage's sake."""
        if self._heart is not None:
            self._heart.stop()
        if self.node is not None and self.number:
            self.node.mailbox.send(
                f"bye-{self.node.local_rank}", {"how": how, "step": step, "why": why, "time": time.time()}
            )
        if self.number:
            self.saver.close()
            self.note_outcomes()
            if self.ranks.rank == 0 and (self.node is None or not self.saver.sink.alive()):
                # A daemon sees all ranks end, and writes it down by itself.
                try:
                    incarnation.end(self.storage, self.number, how, step, why)
                except (OSError, AutoresumeError) as error:
                    log.warning("how this incarnation ended could not be written down: %s", error)
        self.trap.restore()

    @property
    def exit_code(self) -> int:
        """Of an interrupted rank. torchrun would take any failure as a reason to kill the others: to its
        ranks the daemon's word counts, and they leave with 0."""
        return 0 if self.node is not None and "TORCHELASTIC_RUN_ID" in os.environ else EXIT_INTERRUPTED


class _Node:
    """The node daemon as a rank sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mailbox = Mailbox(folder)
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        value = self.mailbox.receive("daemon")
        if value is None:
            raise UsageError(f"{NODE_FOLDER_VARIABLE} names {folder}, where there is no daemon; unset it")
        self.daemon = (int(value["pid"]), float(value["started"]))

    @classmethod
    def of_environment(cls) -> _Node | None:
        folder = os.environ.get(NODE_FOLDER_VARIABLE)
        return cls(Path(folder)) if folder else None

    def greet(self, session: Session) -> None:
        """Tell the daemon who we are, and wait until it has settled what our predecessors left."""
        pid, started = incarnation.this_process()
        keep = session.options.retention
        self.mailbox.send(
            f"hello-{self.local_rank}",
            {
                "pid": pid,
                "started": started,
                "rank": session.ranks.rank,
                "local_world_size": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
                "run_folder": str(session.folder.absolute()),
                "incarnation": session.number,
                "keep": [keep.last, keep.every_steps, keep.every_seconds],
            },
        )
        deadline = time.monotonic() + _WELCOME_SECONDS
        while True:
            welcome = self.mailbox.receive(f"welcome-{self.local_rank}")
            if welcome is not None and welcome["pid"] == pid:
                return
            if not incarnation.process_lives(*self.daemon):
                raise AgreementError("the node daemon died while this rank was starting")
            if time.monotonic() > deadline:
                raise AgreementError(f"the node daemon did not answer within {_WELCOME_SECONDS:.0f} s")
            time.sleep(0.005)


class _Heart(threading.Thread):
    """Rank 0 shows other machines that it lives, and notices when a newer incarnation took over."""

    def __init__(self, session: Session) -> None:
        super().__init__(name="autoresume-heart", daemon=True)
        self._session = session
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        session = self._session
        while True:
            try:
                session.guard()
                incarnation.beat(session.storage, session.number)
            except StaleIncarnation as error:
                session.stale = str(error)
                return
            except OSError as error:
                log.warning("the heartbeat could not be written: %s", error)
            if self._stopped.wait(incarnation.HEARTBEAT_SECONDS):
                return

    def stop(self) -> None:
        self._stopped.set()
        self.join()
