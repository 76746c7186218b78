"""One life of a run behind the `Run` handle: what happens at its beginning, at its boundaries and at its end.

Law: a checkpoint is taken over in a fixed order: objects, `run.state`, counters and positions, side
files, DDP's order of summation, generators last. A boundary counts first and obeys afterwards. It ends
once, as finished, interrupted, failed, or ended (left by the script before its end).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from autoresume.base.failpoints import failpoint
from autoresume.checkpoint import tags
from autoresume.checkpoint.abandon import last_good
from autoresume.data.worker_seeds import PrivateWorkerSeeds
from autoresume.drill.recorder import Recorder
from autoresume.errors import StorageFailed
from autoresume.format import names
from autoresume.format.manifest import Labels
from autoresume.format.names import CheckpointName
from autoresume.handoff.fence import Order
from autoresume.load.read_checkpoint import Restored
from autoresume.ranks import reduction
from autoresume.restore.changes import compare_facts
from autoresume.restore.report import RestoreReport
from autoresume.run import finetune
from autoresume.run.about import Facts
from autoresume.run.datasets import Datasets
from autoresume.run.generators import Generators
from autoresume.run.metrics import Metrics
from autoresume.run.positions import Positions
from autoresume.run.saves import Saves
from autoresume.run.session import Session
from autoresume.run.tracing import Tracing
from autoresume.run.tracked import Tracked
from autoresume.snapshot.saver import Logged
from autoresume.state import rng
from autoresume.state.state import Namespace

log = logging.getLogger("autoresume")


class Life:
    """`step` counts completed steps, `samples` what all ranks saw in them; `epoch` is where the loops stand."""

    def __init__(self, session: Session, state: Namespace) -> None:
        self.session = session
        self.state = state
        self.step = 0
        self.samples = 0
        self.epoch = 0
        self.is_resumed = False
        self.restored = False
        self.stepped = False
        self.over = False
        self.report = RestoreReport()
        self.facts = Facts(session)
        self.datasets = Datasets(session, self.facts.datasets)
        self.tracked = Tracked(session.options.restore, self.report)
        self.generators = Generators()
        self.positions = Positions(session, self.generators.before_first_batch)
        self.metrics = Metrics(session)
        self.saves = Saves(session)
        options = session.options
        self._tracing = Tracing(session.folder, session.ranks.rank, options.profile) if options.profile else None
        self.recorder = Recorder.of_environment(session.ranks.rank)
        """Of a drill; else None."""
        self._samples_given = False
        self._even = False
        """All ranks know of each other that they stand at the same place at each step."""
        self._asked_for = False
        self._tag: str | None = None
        self._reductions: dict[str, reduction.ReductionOrder] = {}
        self._worker_seeds = PrivateWorkerSeeds(lambda: (session.ranks.rank, session.number))
        self._worker_seeds.install()

    # -- the beginning ----------------------------------------------------------------------------

    def restore(self) -> None:
        """Join the others, claim the run, take over a checkpoint if there is one. Every rank must call it."""
        session = self.session
        before = session.ranks.rank
        if self._tracing is not None:
            self._tracing.start()
        self.generators.begin()
        self.facts.gather(self.tracked.objects, self.positions)
        found = session.begin(self.tracked.objects)
        self.restored = True
        if before != session.ranks.rank:
            log.warning("the launcher's variables said rank %d, the process group says %d", before, session.ranks.rank)
        if found is not None:
            self.is_resumed = True
            self._take_over(found)
        else:
            # A script that seeds torch gets the same order of data whenever it does; every rank gets rank 0's.
            self.positions.set_data_seed(int(session.ranks.broadcast(torch.initial_seed() % 2**63)))
            if session.beginning is not None:
                finetune.load_initial_weights(session, session.beginning, self.tracked.modules, self.report)
            there = {"run": _RunState(self), "state": self.state, **self.tracked.materialised()}
            session.saver.check(there, frozenset(self.tracked.promised))
        session.put_back_files(found)
        noted: dict[str, list[int]] = found.states["run"].get("reductions", {}) if found is not None else {}
        self._reductions = reduction.restore_reduction_orders(self.tracked.objects, session.ranks, noted)
        self.generators.restore()
        self.datasets.store()
        self.metrics.open(self.step, found.manifest.labels if found is not None else None, self.facts.config)
        self._log_beginning(found)
        self._write_report_of_restore(found)
        if self.recorder is not None:
            self.recorder.restored(self.step, session.number, self.tracked.objects, vars(self.state))
        if session.ranks.rank == 0:
            failpoint("restore.done")

    def _take_over(self, found: Restored) -> None:
        session = self.session
        states = dict(found.states)
        own, user_state = states.pop("run"), states.pop("state")
        self.report.notes += found.rejected
        self.facts.refuse_others(found.about)
        self.tracked.load_states(states)
        self.state.load_state_dict(user_state)
        self.positions.set_data_seed(int(own["data_seed"]))
        self._compare_beginnings(own["began"])
        self.step, self.samples, self.epoch = int(own["step"]), int(own["samples"]), int(own["epoch"])
        self.positions.load_state(own)
        if session.beginning is None:
            self.saves.saved_step = self.step  # else it is saved in another run only
        if found.exact:
            self.generators.hold(own["rng"])
            problem = rng.why_not_restorable(own["rng"])
            if problem is not None and session.ranks.rank == 0:
                log.warning("%s: random numbers of the device are not those that would have come", problem)
        else:
            rng.seed_all(rng.mix_seed(session.seed, session.ranks.rank, self.step) % 2**32)
            log.warning("rank %d is new since the checkpoint: its generators are seeded anew", session.ranks.rank)

    def _compare_beginnings(self, before: dict[str, str]) -> None:
        differ = self.generators.compare_beginnings(before)
        if differ and self.session.ranks.rank == 0:
            log.warning(
                "the random numbers of %s stand elsewhere than at this point of the run's first start: this script "
                "does not seed them. A split or data set that it draws at its start is another one each time, which no "
                "checkpoint mends. Seed at the start, e.g. run.seed(0) or the option seed.",
                " and ".join(differ),
            )

    def _log_beginning(self, found: Restored | None) -> None:
        session = self.session
        if session.ranks.rank != 0:
            return
        begin = session.beginning
        if begin is not None:
            log.info("run %s, incarnation %d: %s", session.folder, session.number, begin.description)
        elif found is None:
            log.info("run %s, incarnation %d: starts from scratch", session.folder, session.number)
        else:
            checkpoint = found.manifest.checkpoint
            message = "run %s, incarnation %d: goes on after step %d, from %s"
            log.info(message, session.folder, session.number, self.step, checkpoint)

    def _write_report_of_restore(self, found: Restored | None) -> None:
        """What this start took over, told and kept."""
        session, report = self.session, self.report
        if found is None and session.beginning is None:
            return
        told = session.ranks.gather(report.lists())
        if session.ranks.rank != 0:
            return
        begin = session.beginning
        before: Mapping[str, Any] = begin.about if begin is not None else {}
        report.origin = begin.description if begin is not None else ""
        if found is not None:
            before = found.about
            report.origin = report.origin or f"{found.manifest.checkpoint} of this run"
        report.changes = compare_facts(before, self.facts.about())
        report.notes += self._restored_options(report)
        report.log()
        self._write_report(told)

    def _write_report(self, ranks: list[dict[str, list[str]]]) -> None:
        text = json.dumps(self.report.to_json(ranks), indent=1)
        self.session.storage.write(names.report_file(self.session.number), text.encode() + b"\n")

    def _restored_options(self, report: RestoreReport) -> list[str]:
        """What the script sets otherwise than before, where the restored value counts all the same."""
        found = []
        for change in report.changes:
            kind, _, rest = change.what.partition(".")
            name, _, _ = rest.rpartition(".")
            is_optimizer = isinstance(self.tracked.objects.get(name), torch.optim.Optimizer)
            if kind == "objects" and is_optimizer and name in report.restored and rest not in report.reset:
                found.append(f"the restored {rest} counts, not the script's {change.now}; else: restore.fresh={rest}")
        return found

    # -- the boundary -----------------------------------------------------------------------------

    def at_boundary(self, samples: int | None) -> None:
        """One step more. Raises SystemExit where the run has to stop, StateError."""
        self.step += 1
        consumed = self.positions.commit()
        self.samples += consumed if samples is None else samples
        self._samples_given |= samples is not None
        for reduction_order in self._reductions.values():
            reduction_order.note()
        if not self.stepped:
            self._note_first_step()
        self.metrics.write_ready()
        if self.recorder is not None:
            self.recorder.boundary(self.step, self.epoch, self.tracked.objects, vars(self.state))
        order = self.session.at_boundary(self.step)
        if self.recorder is not None and self.recorder.over(self.step):
            order = Order.STOP
        if self._asked_for and order is Order.NOTHING:
            order = Order.SAVE
        self._asked_for = False
        if self._tracing is not None:
            self._trace()
        if order:
            self._carry_out(order)

    def _trace(self) -> None:
        assert self._tracing is not None
        self.session.note_outcomes()  # with what the daemon did
        if self._tracing.step(self.session.number):
            self._tracing = None

    def _note_first_step(self) -> None:
        if self.tracked.refuse_waiting() and self.session.ranks.rank == 0:
            log.warning("not taken over: %s", ", ".join(self.report.unused))
            self._write_report([self.report.lists()])
        self.stepped = True
        self.session.saver.prepare(self._all_objects(), frozenset(self.tracked.promised))
        self.session.note_first_step()

    def _carry_out(self, order: Order) -> None:
        if order in (Order.SAVE, Order.STOP) and self.saves.saved_step != self.step:
            self._save(self._common_position(order), urgent=order is Order.STOP)
        if order in (Order.STOP, Order.LEAVE):
            self._leave()

    def request_save(self, tag: str | None) -> None:
        """Save at the next boundary; every rank must ask. Raises UsageError for what can't be a tag."""
        self._tag = tags.check_tag(tag) if tag is not None else self._tag
        self._asked_for = True

    def _position(self) -> list[int]:
        return [self.step, self.epoch, self.samples]

    def _common_position(self, order: Order) -> list[int]:
        """What all ranks call the checkpoint of this step.

        A cadence in steps needs no word. All else was agreed, and reaches ranks that have left their loops, too: they
        tell each other where they stand, until that was the same once, and cannot but stay the same.
        """
        if self._even or (order is not Order.STOP and self.session.cadence.steps is not None):
            return self._position()
        return max(self._positions_of_ranks())

    def _positions_of_ranks(self) -> list[list[int]]:
        """Where each rank stands. With uneven inputs a checkpoint is named by the rank that came furthest."""
        told = self.session.ranks.gather([self._position(), self.positions.even and not self._samples_given])
        places = [place for place, _ in told]
        self._even = all(even for _, even in told) and all(place == places[0] for place in places)
        differ = [one for one in places if one[0] == self.step and one != self._position()]
        if differ and self.session.cadence.steps is not None and self.session.ranks.rank == 0:
            log.warning(
                "at step %d the ranks are in different epochs, or have counted different samples: their saves every %d "
                "steps have different names, and are not committed. Give save_every in seconds.",
                self.step,
                self.session.cadence.steps,
            )
        return places

    def _save(self, place: list[int], urgent: bool) -> None:
        step, epoch, samples = place
        name = CheckpointName(step=step, incarnation=self.session.number, epoch=epoch, samples=samples)
        if name != self.saves.last:
            promised = frozenset(self.tracked.promised)
            about = self.facts.about()
            self.saves.save(self.step, name, self._all_objects(), promised, about, self._logged, urgent)
            self.metrics.saving(step, self.session.storage.path(name.manifest))

    def _logged(self) -> Logged:
        """Up to the checkpoint that is being made."""
        journal_bytes = self.metrics.flush()
        labels = Labels(self.metrics.last, (self._tag,) if self._tag else ())
        self._tag = None
        return Logged(labels, {names.JOURNAL: journal_bytes} if self.session.ranks.rank == 0 else {})

    def loop_ended(self) -> None:
        """A loop came to its end: what the script does next may write to what is still being copied."""
        self.session.saver.finish_handover()

    def _leave(self) -> None:
        """Stop here and now: the checkpoint is committed, or, with a daemon, sealed. Raises SystemExit."""
        session, why = self.session, "asked to stop by the node daemon or another rank"
        if session.trap.first is not None:
            why = f"{session.trap.first.name} received"
        if session.daemon is None:  # a daemon outlives us, and commits by itself
            lost = self.saves.await_last(session.leave_by)
            if lost is not None and session.ranks.rank == 0:
                log.warning("checkpoint %s could not be committed in time: %s", lost, last_good(session.storage))
        if session.ranks.rank == 0:
            log.info("%s: stopped after step %d; start the same command again and it goes on", why, self.step)
        self.close("interrupted", why)
        raise SystemExit(session.exit_code)

    # -- the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Save the last state, wait until it is committed, and end as finished. Every rank must call it."""
        while True:
            order, _ = self.session.wait_for_all_ranks(self.step)
            if order is Order.NOTHING:
                break
            self.saves.saved_step = None  # the others are further on: they need this rank's part under their step
            self._carry_out(order)
        self.saves.forget_torn()
        places = self._positions_of_ranks()  # all have left by now
        if self.saves.saved_step != self.step or any(place != places[0] for place in places):
            self._save(max(places), urgent=True)
        lost = self.saves.await_last()
        if lost is not None:
            raise StorageFailed(
                f"the training came to its end, but its last state, {lost}, could not be saved: "
                f"{last_good(self.session.storage)} When that is mended start the same command again: it goes on from "
                "there, and is marked finished when its last state is safe."
            )
        if self.session.ranks.rank == 0:
            if self.is_resumed and not self.stepped:
                log.warning(
                    "nothing was left to train: the checkpoint stands after step %d, in epoch %d, where the script's "
                    "loop ends. Give it more epochs, or steps, or select an earlier checkpoint",
                    self.step,
                    self.epoch,
                )
            log.info("run %s is finished after step %d", self.session.folder, self.step)
        self.close("finished", "the script came to its end")

    def close(self, how: str, why: str) -> None:
        """End this incarnation. Waits for what is being persisted."""
        self.over = True
        if self._tracing is not None:
            self._tracing.close(self.session.number)
        self._worker_seeds.remove()
        self.metrics.close(how)
        self.session.end(how, self.step, why)
        self.positions.end(how == "finished")

    # -- what is stored ---------------------------------------------------------------------------

    def _all_objects(self) -> dict[str, Any]:
        return {"run": _RunState(self), "state": self.state, **self.tracked.objects}


class _RunState:
    """The run's own state: counters, positions, generators. Read at a boundary; never loaded as a whole."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def state_dict(self) -> dict[str, Any]:
        life = self._life
        return {
            "step": life.step,
            "epoch": life.epoch,
            "samples": life.samples,
            "data_seed": life.positions.data_seed,
            "began": life.generators.began,
            "reductions": {name: one.order for name, one in life._reductions.items() if one.order is not None},
            **life.positions.state(),
            "rng": rng.get_rng_state(),
        }
