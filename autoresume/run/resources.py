"""What one life of a run holds: its folder, signals, ranks, node daemon, memory for snapshots, record and heartbeat.

Law: taken in one order and given back in the other. Taken: signals trapped, folder opened, ranks joined, number
claimed, daemon told. Given back: snapshots sealed, what is being persisted awaited (where nobody outlives us), the
record's end written, signals put back. What happens in between is decided by `Life`.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.persist import Guard
from autoresume.config.options import Options
from autoresume.errors import EXIT_INTERRUPTED, AutoresumeError
from autoresume.handoff.fence import RankFence
from autoresume.handoff.signals import SignalTrap, when_parent_dies
from autoresume.load.read_checkpoint import Restored
from autoresume.ranks import agreement
from autoresume.ranks.agreement import Ranks
from autoresume.ranks.ask_rank_0 import ask_rank_0
from autoresume.restore.beginning import Beginning
from autoresume.run import srun
from autoresume.run.cadence import Cadence
from autoresume.run.daemon_client import DaemonClient
from autoresume.run.heartbeat import Heartbeat
from autoresume.run.life_record import LifeRecord, current_traceback
from autoresume.run.orders import Orders
from autoresume.run.run_file import RunFile
from autoresume.run.saves import Saves
from autoresume.snapshot.saver import Saver
from autoresume.snapshot.sinks import DaemonSink, Sink, ThreadSink
from autoresume.snapshot.unchanged import Unchanged
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")

_LEAVE_MARGIN_SECONDS = 1.0


class Resources:
    """Opened before the user's code runs; `join` joins the ranks and claims the incarnation.

    From `join` on there are `number`, `guard`, `saves` and `orders`. `daemon` is None where no node daemon is above us.
    """

    guard: Guard
    saves: Saves
    orders: Orders

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
        self._joined: Ranks | None = None
        self.run_file = RunFile(self.storage, options)
        self.record = LifeRecord(self.storage)
        self.number = 0
        self.daemon = DaemonClient.of_environment()
        self.cadence = Cadence(options.save_steps, options.save_seconds, time.monotonic())
        self._heartbeat: Heartbeat | None = None
        self._unchanged = Unchanged(looks=options.unchanged == "link")

    @property
    def run_id(self) -> str:
        return self.run_file.run_id

    @property
    def ranks(self) -> Ranks:
        """Before `join` only what is known by then: nobody can be asked anything."""
        return self._joined or Ranks(*agreement.known_ranks())

    # -- the beginning ----------------------------------------------------------------------------

    def init_process_group(self) -> None:
        """The default process group, where the option `backend` leaves it to us from the start; also of one rank, for
        scripts that wrap their model whatever the size."""
        if self.options.backend is not None:
            agreement.init_process_group(self.options.backend)

    def join(self) -> None:
        """Join the other ranks, claim the incarnation. Every rank must call it. Raises RunIsLive, AgreementError."""
        self._joined = ranks = Ranks.join(self.options.backend)
        self.trap.install()  # a framework may have put its own handlers on since
        if ranks.rank == 0:
            self.record.look_back()
        if self.daemon is not None:
            # It settles what the last life left before a claim makes that stale.
            self.daemon.register(ranks, self.folder, self.options)
        process = self.daemon.process if self.daemon else None

        def claim() -> dict[str, int]:
            return {"number": self.record.claim(self.run_id, ranks.world_size, process)}

        number = int(ask_rank_0(ranks, claim if ranks.rank == 0 else None)["number"])
        self.guard = incarnation.guard(self.storage, number)
        sink, fence = self._make_sink(number)
        arena_folder = self.daemon.folder if self.daemon else None
        saver = Saver(self.run_id, ranks, sink, arena_folder, self._thread_sink, self._unchanged)
        self.saves = Saves(self.storage, ranks, saver, self.cadence, self.guard)
        self.orders = Orders(ranks, self.trap, self.cadence, self.saves, fence)
        self.number = number  # from here on there is something to close
        if ranks.rank == 0:
            self.cadence.failure_seconds = self.record.failure_seconds()
            self._heartbeat = Heartbeat(self.storage, self.number, self.guard, self.orders)

    def _thread_sink(self) -> Sink:
        return ThreadSink(self.storage, self.options.retention, self.guard)

    def _make_sink(self, number: int) -> tuple[Sink, RankFence | None]:
        """Who persists snapshots, and where orders come from."""
        daemon = self.daemon
        if daemon is None:
            return self._thread_sink(), None
        daemon.report_incarnation(number)
        fence = RankFence(daemon.folder / "fence", daemon.slot, daemon.is_alive)
        sink = DaemonSink(daemon.mailbox, self.folder.absolute(), daemon.process, incarnation.process_lives)
        return sink, fence

    def note_beginning(self, restored: Restored | None, begin: Beginning | None) -> None:
        """All ranks have read what they go on from: what the last life left in memory is given up."""
        if restored is not None:
            self._unchanged.resume(restored.unchanged)
        if self.daemon is not None:
            self.daemon.release_kept_snapshots()
        if self.ranks.rank == 0:
            checkpoint = restored.manifest.checkpoint if restored else None
            self.orders.last_step = checkpoint.step if checkpoint else 0
            best = self.options.best
            self.run_file.change(best=vars(best) if best else None)
            self.record.note_beginning(self.options, checkpoint, begin.description if begin else None)

    # -- the end ----------------------------------------------------------------------------------

    @property
    def leave_by(self) -> float:
        """The monotonic moment at which a stopping rank must be gone."""
        return self.trap.since + self.options.grace - _LEAVE_MARGIN_SECONDS if self.trap.first else float("inf")

    @property
    def exit_code(self) -> int:
        """Of an interrupted rank. torchrun would take any failure as a reason to kill the others: to its
        ranks the daemon's word counts, and they leave with 0."""
        return 0 if self.daemon is not None and "TORCHELASTIC_RUN_ID" in os.environ else EXIT_INTERRUPTED

    def close(self, how: str, step: int, why: str) -> None:
        """Write down how this incarnation ended, and give everything back. Never raises for storage's sake."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self.number:
            self._close_saves(how, step, why)
        self.trap.restore()

    def _close_saves(self, how: str, step: int, why: str) -> None:
        saver, daemon = self.saves.saver, self.daemon
        saver.finish_handover()
        if daemon is not None:
            trace = current_traceback() if how == "failed" else None
            bye = {"how": how, "step": step, "why": why, "time": time.time(), "traceback": trace}
            daemon.mailbox.send(f"bye-{daemon.slot}", bye)
        saver.close()
        self.saves.note_outcomes()
        if self.ranks.rank or (daemon is not None and saver.sink.alive()):
            return  # a daemon sees all ranks end, and writes it down by itself
        try:
            incarnation.record_end(self.storage, self.number, how, step, why)
            if how == "interrupted" and daemon is None:
                srun.requeue_if_needed(self.folder.absolute(), why)
        except (OSError, AutoresumeError) as error:
            log.warning("how this incarnation ended could not be written down: %s", error)
