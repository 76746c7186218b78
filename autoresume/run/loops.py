"""The loops that a run offers: over batches, steps, epochs, ranges and tasks, each from where the run stands.

Law: a loop restores the run when it is begun. What ends a turn of it says its docstring: a step boundary, or nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from autoresume.base.call_site import CallSite, where
from autoresume.data.resumable_loader import ResumableLoader
from autoresume.errors import UsageError
from autoresume.run.life import Life

log = logging.getLogger("autoresume")


_END = object()


class Loops:
    """Of one life. `site` is where in the script a loop is begun."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._warned = False
        self._unfinished: tuple[ResumableLoader, Iterator[Any]] | None = None
        """The loader, and its batches, of a turn that has not come to its boundary."""

    def batches(self, loader: Any, site: CallSite, epochs: int | None, accumulate: int) -> Iterator[Any]:
        """Each turn ends at a step boundary; with `accumulate`, every so many turns."""
        life = self._life
        life.restore_once()
        position = life.positions.position_of(loader, site, epochs is not None)
        self._count_unfinished_turn(position)
        life.tracked.load_materialised()
        life.generators.before_first_batch()  # also where nothing is left
        count, begun = position.count, False
        while True:
            position.start_next_epoch_if_over()
            life.epoch = epoch = position.epoch
            if not begun:
                begun = True
                count.begin(epoch, epochs is not None)
            if epochs is not None and epoch >= epochs:
                life.loop_ended()
                return
            batches = position.iterate()
            while True:
                if not count.goes_on():
                    return
                batch = next(batches, _END)
                if batch is _END:
                    break
                count.turn(epoch)
                self._unfinished = position, batches
                yield batch
                self._unfinished = None
                if count.turns % accumulate == 0:
                    self._tell(site, count.before_boundary())
                    life.at_boundary(None)
            if epochs is None:
                life.loop_ended()
                return

    def finish_turn(self) -> None:
        """The script comes to its end."""
        if self._unfinished is not None:
            self._count_unfinished_turn(self._unfinished[0])

    def _count_unfinished_turn(self, position: ResumableLoader) -> None:
        """A loop that counts its turns, and does not run into its end, leaves the last one without a boundary."""
        left, self._unfinished = self._unfinished, None
        if left is None or left[0] is not position:
            return
        saver = self._life.saves.saver
        if saver.updated_since_boundary or (position.gave_all and not saver.sees_updates):
            self._life.at_boundary(None)

    def _tell(self, site: CallSite, problems: list[str]) -> None:
        for problem in problems:
            log.warning("%s: %s", where(site), problem)

    def steps(self, count: int) -> Iterator[int]:
        """Each turn ends at a step boundary."""
        life = self._life
        life.restore_once()
        life.tracked.load_materialised()
        life.generators.before_first_batch()
        while life.step < count:
            yield life.step
            life.at_boundary(None)
        life.loop_ended()

    def range(self, kind: str, name: str | None, site: CallSite, bounds: tuple[int, ...]) -> Iterator[int]:
        """Turns end with nothing: step boundaries are the script's own."""
        self._life.restore_once()
        return self._turns(self._life.positions.range(kind, name, site, bounds))

    def _turns(self, values: Iterator[int]) -> Iterator[int]:
        life = self._life
        for turn, value in enumerate(values):
            before = life.step
            if turn and before == 0:
                self._warn(
                    "a turn of this loop is over, and run.step() was never called: turns of run.range are no step "
                    "boundaries, so nothing is saved, and nobody can stop here. Call run.step() where a step ends."
                )
            yield value
            if life.step == before + 1 and not life.positions.has_loaders:
                self._warn(
                    "each turn of run.range ends with run.step(): a turn that is interrupted there is entered "
                    "again after the resume. Use `for step in run.steps(count)`, which ends its turns by itself."
                )

    def _warn(self, message: str) -> None:
        """Once in a run's life: it would come in each turn."""
        if not self._warned:
            self._warned = True
            log.warning(message)

    def epochs(self, count: int, site: CallSite) -> Iterator[int]:
        for epoch in self.range("epochs", None, site, (count,)):
            self._life.epoch = epoch
            yield epoch
        self._life.loop_ended()

    def tasks(self, site: CallSite, save: str | None, start: int, stop: int) -> Iterator[int]:
        """A task's end is a step boundary of its own, without samples. Raises UsageError."""
        if save not in ("task", "last", None):
            raise UsageError(
                f"run.tasks(save={save!r}): give 'task' (after each task), 'last' (after the last) or None"
            )

        def ended(task: int) -> None:
            if save == "task" or (save == "last" and task == stop - 1):
                self._life.request_save(f"task={task}")
            self._life.at_boundary(None)

        return self._tasks(site, (start, stop), ended)

    def _tasks(self, site: CallSite, bounds: tuple[int, int], ended: Callable[[int], None]) -> Iterator[int]:
        self._life.restore_once()
        yield from self._life.positions.range("tasks", None, site, bounds, ended)
        self._life.loop_ended()
