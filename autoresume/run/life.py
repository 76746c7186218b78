"""One life of a run behind the `Run` handle: what happens at its beginning, at its boundaries and at its end.

Law: a checkpoint is taken over in a fixed order: objects, `run.state`, counters and positions, side
files, DDP's order of summation, generators last. A boundary counts first and obeys afterwards. It ends
once, as finished, interrupted, failed, or ended (left by the script before its end).
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from autoresume.base.failpoints import failpoint
from autoresume.checkpoint import tags
from autoresume.checkpoint.abandon import last_good
from autoresume.data.every_loader import EveryLoader
from autoresume.errors import StorageFailed, UsageError
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.format.part import Labels
from autoresume.handoff.fence import Order
from autoresume.load.read_checkpoint import Restored
from autoresume.ranks import reduction
from autoresume.restore.beginning import Beginning
from autoresume.restore.report import RestoreReport
from autoresume.run import audited, endings, finetune
from autoresume.run.about import Facts
from autoresume.run.choose_checkpoint import choose_checkpoint, restore_side_files
from autoresume.run.common_position import CommonPosition, Position
from autoresume.run.datasets import Datasets
from autoresume.run.generators import Generators
from autoresume.run.metrics import Metrics
from autoresume.run.positions import Positions
from autoresume.run.resources import Resources
from autoresume.run.restore_summary import RestoreSummary, log_beginning, warn_of_unseeded
from autoresume.run.run_state import RunState
from autoresume.run.saves import Content, Saves
from autoresume.run.tracing import Tracing
from autoresume.run.tracked import Tracked
from autoresume.snapshot.saver import Logged
from autoresume.state import rng
from autoresume.state.namespace import Namespace, tensors_in
from autoresume.state.trial import try_states

log = logging.getLogger("autoresume")


class Life:
    """`step` counts completed steps, `samples` what all ranks saw in them; `epoch` is where the loops stand."""

    saves: Saves
    """From `restore` on."""

    def __init__(self, resources: Resources, state: Namespace) -> None:
        self.resources = resources
        self.state = state
        self.step = 0
        self.samples = 0
        self.epoch = 0
        self.is_resumed = False
        self.restored = False
        self.stepped = False
        self.over = False
        options, rank = resources.options, resources.ranks.rank
        self._opened_as = rank, resources.ranks.world_size
        self.report = RestoreReport()
        self.facts = Facts(resources)
        self.datasets = Datasets(resources, self.facts.datasets)
        self.tracked = Tracked(options.restore, self.report)
        self.generators = Generators()
        self.positions = Positions(resources, self.generators, lambda: tensors_in(state))
        self.metrics = Metrics(resources)
        self.audit = audited.watch(resources, self.positions, self.tracked)
        self._summary = RestoreSummary(resources, self.report)
        self._common = CommonPosition(resources)
        self._tracing = Tracing(resources.folder, rank, options.profile) if options.profile else None
        self._samples_given = False
        self._kept_at_boundary: dict[str, Any] = {}
        self._asked_for = False
        self._tag: str | None = None
        self._reductions: dict[str, reduction.ReductionOrder] = {}
        self._run_state = RunState(self._counters, self.positions, self.generators, lambda: self._reductions)
        self._every_loader = EveryLoader(
            lambda: (resources.ranks.rank, resources.number), self.positions.following.begin
        )
        self._every_loader.install()

    # -- the beginning ----------------------------------------------------------------------------

    def restore_once(self) -> None:
        if not self.restored:
            self.restore()

    def restore(self) -> None:
        """Join the others, claim the run, take over a checkpoint if there is one. Every rank must call it."""
        resources, objects = self.resources, self.tracked.objects
        if self._tracing is not None:
            self._tracing.start()
        self.generators.begin()
        self.facts.gather(objects, self.positions)
        self._join()
        found, begin = choose_checkpoint(resources, objects)
        resources.note_beginning(found, begin)
        self.restored = True
        if found is not None:
            self.is_resumed = True
            self._take_over(found, begin)
        else:
            self._begin_anew(begin)
        restore_side_files(resources, found, begin)
        noted: dict[str, list[int]] = found.states["run"].get("reductions", {}) if found is not None else {}
        self._reductions = reduction.restore_reduction_orders(objects, resources.ranks, noted)
        self.generators.restore()
        self.datasets.store()
        self.metrics.open(self.step, found.manifest.labels if found is not None else None, self.facts.config)
        log_beginning(resources, found, begin)
        changes = self._summary.summarise(found, begin, self.facts.about(), objects)
        own = found if begin is None else None
        began = audited.beginning(self.step, resources, own, changes, self.generators.differed)
        self.audit.restored(began, resources.ranks.rank, objects, vars(self.state))
        if resources.ranks.rank == 0:
            failpoint("restore.done")

    def _join(self) -> None:
        self.resources.join()
        self.saves = self.resources.saves
        self.positions.refuse_others_ranks()
        ranks, seed, (rank, world_size) = self.resources.ranks, self.resources.options.seed, self._opened_as
        if seed is not None and (ranks.rank, ranks.world_size) != (rank, world_size):
            raise UsageError(
                f"the option seed={seed} has seeded this process as rank {rank} of {world_size}, and the process group "
                f"says rank {ranks.rank} of {ranks.world_size}: ranks would draw the same numbers. Call "
                "torch.distributed.init_process_group(...) before the run is opened."
            )

    def _begin_anew(self, begin: Beginning | None) -> None:
        """From scratch, or with the weights of something else."""
        resources = self.resources
        # A script that seeds torch gets the same order of data whenever it does; every rank gets rank 0's.
        self.positions.set_data_seed(int(resources.ranks.broadcast(torch.initial_seed() % 2**63)))
        if begin is not None:
            request, modules = resources.options.restore, self.tracked.modules
            finetune.load_initial_weights(begin, request, resources.ranks, modules, self.report)
        there = {"run": self._run_state, "state": self.state, **self.tracked.materialised()}
        self.saves.saver.check(there, frozenset(self.tracked.promised))

    def _take_over(self, found: Restored, begin: Beginning | None) -> None:
        ranks = self.resources.ranks
        states = dict(found.states)
        own, user_state = states.pop("run"), states.pop("state")
        self.report.notes += found.rejected
        self.facts.refuse_others(found.about)
        self.tracked.load_states(states)
        self.state.load_state_dict(user_state, self.tracked.memory())
        self.positions.set_data_seed(int(own["data_seed"]))
        differ = self.generators.compare_beginnings(own["began"])
        if differ and ranks.rank == 0:
            warn_of_unseeded(differ)
        self.step, self.samples, self.epoch = int(own["step"]), int(own["samples"]), int(own["epoch"])
        self.positions.load_state(own)
        self.generators.draws_first = own["draws_first"]
        if begin is None:
            self.saves.saved_step = self.step  # else it is saved in another run only
        if found.exact:
            self.generators.hold(own["rng"])
            problem = rng.why_not_restorable(own["rng"])
            if problem is not None and ranks.rank == 0:
                log.warning("%s: random numbers of the device are not those that would have come", problem)
        else:
            rng.seed_all(rng.mix_seed(self.resources.run_file.seed, ranks.rank, self.step) % 2**32)
            log.warning("rank %d is new since the checkpoint: its generators are seeded anew", ranks.rank)

    # -- the boundary -----------------------------------------------------------------------------

    def at_boundary(self, samples: int | None) -> None:
        """One step more. Raises SystemExit where the run has to stop, StateError."""
        self.step += 1
        consumed = self.positions.commit()
        self.samples += consumed if samples is None else samples
        self._samples_given |= samples is not None
        self.generators.at_boundary()
        self._kept_at_boundary = dict(vars(self.state))
        for reduction_order in self._reductions.values():
            reduction_order.note()
        if not self.stepped:
            self._note_first_step()
        self.metrics.write_ready()
        self.audit.boundary(self.step, self.epoch, self.tracked.objects, vars(self.state))
        order = self.resources.orders.at_boundary(self.step)
        if self.audit.over(self.step):
            order = Order.STOP
        if self._asked_for and order is Order.NOTHING:
            order = Order.SAVE
        self._asked_for = False
        if self._tracing is not None:
            self._trace(self._tracing)
        if order:
            self._carry_out(order)

    def _trace(self, tracing: Tracing) -> None:
        self.saves.note_outcomes()  # with what the daemon did
        if tracing.step(self.resources.number):
            self._tracing = None

    def _note_first_step(self) -> None:
        rank = self.resources.ranks.rank
        if self.tracked.refuse_waiting() and rank == 0:
            self._summary.note_given_up()
        self.stepped = True
        if not self.is_resumed:
            try_states(self.tracked.objects)
        self.saves.saver.prepare(self._all_objects(), frozenset(self.tracked.promised))
        if rank == 0:
            self.resources.record.note_first_step()

    def _carry_out(self, order: Order, finishing: bool = False) -> bool:
        """False where it was void: all ranks are `finishing`, and nothing is left that a stop could interrupt."""
        stopping, own = order is Order.STOP, self._position
        position: Position | None = None
        if stopping and self.resources.orders.fence is None:
            # A daemon knows who has left. Among themselves the ranks tell each other, since all obey the same order.
            position = max(self._common.of_ranks(own, self._stays_even, finishing))
            if self._common.all_finishing:
                return False
        if order in (Order.SAVE, Order.STOP) and self.saves.saved_step != self.step:
            position = position or self._common.of_save(own, self._stays_even, stopping)
            self._save(position, urgent=stopping)
        if order in (Order.STOP, Order.LEAVE):
            self._leave()
        return True

    def request_save(self, tag: str | None) -> None:
        """Save at the next boundary; every rank must ask. Raises UsageError for what can't be a tag."""
        self._tag = tags.check_tag(tag) if tag is not None else self._tag
        self._asked_for = True

    def _counters(self) -> dict[str, int]:
        return self._position._asdict()

    @property
    def _position(self) -> Position:
        return Position(self.step, self.epoch, self.samples)

    @property
    def _stays_even(self) -> bool:
        return self.positions.even and not self._samples_given

    def _save(self, position: Position, urgent: bool) -> None:
        name = CheckpointName(
            step=position.step, incarnation=self.resources.number, epoch=position.epoch, samples=position.samples
        )
        if name != self.saves.last:
            self.audit.saving(position.step, self.tracked.objects, vars(self.state))
            promised = frozenset(self.tracked.promised)
            content = Content(self._all_objects(), promised, self.facts.about(), self._logged)
            self.saves.save(self.step, name, content, urgent)
            self.metrics.saving(position.step, self.resources.storage.path(name.manifest))

    def _logged(self) -> Logged:
        """Up to the checkpoint that is being made."""
        journal_bytes = self.metrics.flush()
        labels = Labels(self.metrics.last, (self._tag,) if self._tag else ())
        self._tag = None
        return Logged(labels, {names.JOURNAL: journal_bytes} if self.resources.ranks.rank == 0 else {})

    def loop_ended(self) -> None:
        """A loop came to its end: what the script does next may write to what is still being copied."""
        self.saves.saver.finish_handover()

    def _leave(self) -> None:
        """Stop here and now: the checkpoint is committed, or, with a daemon, sealed. Raises SystemExit."""
        resources, why = self.resources, "asked to stop by the node daemon or another rank"
        if resources.trap.first is not None:
            why = f"{resources.trap.first.name} received"
        if resources.daemon is None:  # a daemon outlives us, and commits by itself
            lost = self.saves.await_last(resources.leave_by)
            if lost is not None and resources.ranks.rank == 0:
                log.warning("checkpoint %s could not be committed in time: %s", lost, last_good(resources.storage))
        if resources.ranks.rank == 0:
            log.info("%s: stopped after step %d; start the same command again and it goes on", why, self.step)
        self.close("interrupted", why)
        raise SystemExit(resources.exit_code)

    # -- the end ----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Save the last state, wait until it is committed, and end as finished. Every rank must call it."""
        self.positions.following.refuse_untrained_end()
        if self.saves.saver.updated_since_boundary:
            self._count_last_update()
        while True:
            order, _ = self.resources.orders.wait_for_all_ranks(self.step)
            if order is Order.NOTHING:
                break
            self.saves.saved_step = None  # the others are further on: they need this rank's part under their step
            if not self._carry_out(order, finishing=True):
                break
        self.saves.forget_torn(self.step)
        positions = self._common.of_ranks(self._position, self._stays_even)  # all have left by now
        if self.saves.saved_step != self.step or any(one != positions[0] for one in positions):
            self._save(max(positions), urgent=True)
        lost = self.saves.await_last()
        if lost is not None:
            raise StorageFailed(
                f"the training came to its end, but its last state, {lost}, could not be saved: "
                f"{last_good(self.resources.storage)} When that is mended start the same command again: it goes on "
                "from there, and is marked finished when its last state is safe."
            )
        if self.resources.ranks.rank == 0:
            trained_nothing = self.is_resumed and not self.stepped
            endings.log_finished(self.resources.folder, self.step, self.epoch if trained_nothing else None)
        self.close("finished", "the script came to its end")

    def _count_last_update(self) -> None:
        """The loop was left between an update and its boundary: the last state is not that of the step before."""
        self.step += 1
        self.samples += self.positions.commit()
        self.saves.saver.at_boundary()
        if self.resources.ranks.rank == 0:
            endings.warn_of_last_update(self.step, self._kept_at_boundary, vars(self.state))

    def close(self, how: str, why: str) -> None:
        """End this incarnation. Waits for what is being persisted."""
        self.over = True
        if self._tracing is not None:
            self._tracing.close(self.resources.number)
        self._every_loader.remove()
        self.audit.close(how == "finished")
        self.metrics.close(how)
        self.resources.close(how, self.step, why)
        self.positions.end(how == "finished")

    # -- what is stored ---------------------------------------------------------------------------

    def _all_objects(self) -> dict[str, Any]:
        return {"run": self._run_state, "state": self.state, **self.tracked.objects}
