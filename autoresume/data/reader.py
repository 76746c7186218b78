"""A place in the script where a loader is iterated, again and again: which pass its loop trains on, and how far.

Law: what is stored is what the loop has trained on; what it holds at a boundary comes again. A loop that would pass
over batches a second time is refused before anything of that is saved.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from autoresume.base.call_site import Lasting
from autoresume.data import batch_observer, counters
from autoresume.data.counters import Counted, Counters
from autoresume.data.held_batches import HeldBatches
from autoresume.data.loader_pass import LoaderPass, PassRecord
from autoresume.errors import UsageError

log = logging.getLogger("autoresume")


_FIRST, _PLAIN = 8, 50
"""Boundaries at each of which all is looked at; and those of a plain loop from one look at its data to the next."""


@dataclass
class _Segment:
    """Batches of one pass that were handed out; the first `trained` of them are done with."""

    record: PassRecord
    trained: int


@dataclass
class Reader:
    """`form` is what the loader is made of. `order` tells which readers began after it, `turn` in which turn of the
    script's loops its pass began."""

    place: Lasting
    form: str
    where: str
    order: int = 0
    turn: str = ""
    loader: Callable[[], Any] = lambda: None
    alive: Callable[[], LoaderPass | None] = lambda: None
    held: HeldBatches = field(default_factory=HeldBatches)
    trains: bool = False
    """A step boundary came while one of its iterators lived."""
    is_restored: bool = False
    was_over: bool = False
    """Its pass had come to its end before the resume."""
    was_suspended: bool = False
    """Whoever iterated the loader had not gone on since."""
    drift: dict[str, list[Any]] = field(default_factory=dict)
    _segments: list[_Segment] = field(default_factory=list)
    _handed_out: int = 0
    """Since the last boundary."""
    _again: list[dict[str, Any]] = field(default_factory=list)
    """Passes of an earlier life that are still to be gone on with: one, or two if the loop looks over a border."""
    _passed_over: int | None = None
    """In this life, until its first boundary: the batches that were passed over."""
    _kept: bool = False
    """The script had the batches that it held in `run.state`."""
    _gave_nothing: bool = False
    _counters: Counters = field(default_factory=Counters)
    _was_counted: Counted = field(default_factory=list)
    """Before the resume."""
    _is_counted: bool = False
    _length_before: int = 0
    _boundaries: int = 0
    _thread: int = 0
    """The one that fetched last."""
    _seen: deque[str] = field(default_factory=deque)
    """Where somebody observes: digests of the batches that were handed out and not trained on."""

    @property
    def is_alive(self) -> bool:
        one = self.alive()
        return one is not None and not one.record.ended

    @property
    def _outstanding(self) -> int:
        return sum(one.record.given - one.trained for one in self._segments)

    def gives_nothing(self, turn: str) -> bool:
        """Once, where the script comes by a pass again that had come to its end before the resume."""
        if self._gave_nothing or not self.was_over or self.turn != turn:
            return False
        self._gave_nothing = True
        return True

    def next_pass(self) -> dict[str, Any] | None:
        """The state that the pass which begins now goes on from."""
        return self._again.pop(0) if self._again else None

    def began(self, made: LoaderPass, order: int, turn: str, again: dict[str, Any] | None) -> None:
        self.alive, self.order, self.turn, self.was_over = weakref.ref(made), order, turn, False
        self._length_before = self._segments[-1].record.given if self._segments else 0
        if not (self.trains and self.held.ahead):
            self._leave()  # what was handed out and is not held, when another pass begins
        self._segments.append(_Segment(made.record, made.record.given))
        self._is_counted = False
        self._keep_what_is_held(made.record)
        if again is not None:
            if self._was_counted:
                counted, self._was_counted = self._was_counted, []
                made.on_first = lambda batches: counters.go_on(batches, counted, made.record.given)
            self._passed_over = made.record.given
            log.info("%s goes on with batch %d", self.where, made.record.given + 1)
            if self.held.is_uncertain:
                log.warning(
                    "%s: the run was interrupted after the first step of this loop, before which it took several "
                    "batches. They count as trained on. If the loop holds some at its boundaries, say so: "
                    "run.follow(loader, fetched_ahead=1).",
                    self.where,
                )

    def note(self, batch: Any) -> None:
        self._handed_out += 1
        self._thread = threading.get_ident()
        self.held.note(batch)
        seen = batch_observer.look(batch)
        if seen is not None:
            self._seen.append(seen)

    def _leave(self) -> None:
        self._segments.clear()
        self._seen.clear()

    # -- the boundary ---------------------------------------------------------------------------------

    def boundary(self) -> list[str]:
        """A step boundary. Returns what is to be told. Raises UsageError."""
        new, self._handed_out = self._handed_out, 0
        if not self._segments:
            return []
        self._boundaries += 1
        if self._boundaries > _FIRST and self._boundaries % _PLAIN and self._is_plain and self.is_alive:
            self._train(self._outstanding)
            return []
        if self.is_alive:
            self.trains = True
        elif not self.trains:
            self._leave()  # an evaluation, or a look
            return []
        if self._passed_over is not None:
            self._refuse_others_ways(new)
        elsewhere = self._thread != threading.get_ident()
        if elsewhere:
            self.held.say(0)
        newest, was_settled = self._segments[-1].record, self.held.settled
        if new or self.alive() is not None:
            at_end = not was_settled and self._at_end(newest)
            held = self.held.at_boundary(new, self._outstanding, newest.ended, at_end)
        else:
            held = self.held.of_ended(self._outstanding)
        self._train(self._outstanding - held)
        told = self._look_for_counters()
        if newest.drawing is not None:
            told += [f"{self.where}: {problem}" for problem in newest.drawing.problems()]
        if elsewhere:
            told.append(
                f"{self.where}: this loader is iterated in a thread of its own, ahead of the loop by nobody knows how "
                "many batches: those are passed over after a resume. Iterate it where run.step() is called; "
                "num_workers fetches ahead, too."
            )
        if not self.held.settled:
            return told
        self._keep_what_is_held(newest)
        return told if was_settled or not self.held.ahead else [*told, self._looks_ahead()]

    @property
    def _is_plain(self) -> bool:
        """It holds nothing, and all that is to be found out about it is known."""
        held = self.held.ahead or not self.held.settled or self._passed_over is not None
        return self.trains and self._is_counted and len(self._segments) == 1 and not held

    def _look_for_counters(self) -> list[str]:
        batches = self.alive()
        if self._is_counted or batches is None or not self.is_alive:
            return []
        self._is_counted = True
        problems = self._counters.look(batches, self._segments[-1].trained, self._length_before)
        return [f"{self.where}: {problem}" for problem in problems]

    def _keep_what_is_held(self, record: PassRecord) -> None:
        """The generators that the last batches were read with: only for loops that hold some."""
        drawing = record.drawing
        if self.held.settled and drawing is not None and drawing.keeps_held:
            drawing.always_keeps = drawing.always_keeps or self.held.ahead > 0
            drawing.keeps_held = drawing.always_keeps

    def _train(self, count: int) -> None:
        for _ in range(min(count, len(self._seen))):
            batch_observer.trained(self._seen.popleft())
        for one in self._segments:
            done = min(count, one.record.given - one.trained)
            one.trained += done
            count -= done
        while len(self._segments) > 1 and self._segments[0].trained == self._segments[0].record.given:
            self._segments.pop(0)

    def _at_end(self, record: PassRecord) -> bool:
        try:
            return record.given >= len(self.loader())
        except TypeError:
            return False

    def _looks_ahead(self) -> str:
        count = self.held.ahead
        batches = "a batch" if count == 1 else f"{count} batches"
        order = "" if count == 1 else " It must train on them in the order in which it took them."
        return (
            f"{self.where}: this loop holds {batches} at each step boundary without having trained on it, and gets it "
            f"again after a resume.{order} Say so, and it need not be found out: "
            f"run.follow(loader, fetched_ahead={count}); if the script keeps it by itself, say 0."
        )

    def refuse_untrained_end(self) -> None:
        """The script comes to its end. Raises UsageError."""
        if self._passed_over and self._handed_out > 1 and not self._kept:
            raise UsageError(
                f"{self.where}: after the resume the script took {self._handed_out} batches, and trained on none. It "
                f"seems to pass over the {self._passed_over} that were trained on, and so did the run, which is not "
                "finished. Take it out of the script, or keep the run away from this loader: run.follow(loader, False)."
            )

    def _refuse_others_ways(self, new: int) -> None:
        """The script, too, does something to go on where it was."""
        begun, self._passed_over = self._passed_over, None
        usual, ahead = self.held.usual, self.held.ahead
        if usual is None or not begun or self._kept:
            return
        # A pair of loaders of which one ends drops a batch of the other: one more means nothing.
        if new > usual + ahead + 1 and new in (begun + usual, begun + usual + ahead):
            raise UsageError(
                f"{self.where}: after the resume the script took {new} batches before its first step, where a step "
                f"takes {usual}: it passes over the {begun} that were trained on, and so did the run. Nothing of "
                "that is saved. Take it out of the script, or keep the run away from this loader: "
                "run.follow(loader, False)."
            )
        if ahead and not self.held.given and new == usual and self.is_alive:
            raise UsageError(
                f"{self.where}: before the resume this loop held a batch at each of its step boundaries, which it had "
                "not trained on, and got that again. Now it holds none: it seems to keep that batch by itself, and "
                "would train on it twice. Nothing of that is saved. Say run.follow(loader, fetched_ahead=0), or keep "
                "the batch in run.state."
            )

    # -- over lives -----------------------------------------------------------------------------------

    def state(self, drift: dict[str, list[Any]], kept: list[torch.Tensor]) -> dict[str, Any] | None:
        """None where there is nothing to go on with."""
        passes = [*self._again]
        over, by_script = self.was_over, False
        if self.trains and self._segments:
            over = not self.is_alive and not self._outstanding
            by_script = bool(kept) and self.held.kept_by_script(kept)
            passes = [] if over else [self._pass_state(one, by_script) for one in self._segments]
        if not (passes or over or drift):
            return None
        return {
            "place": self.place,
            "form": self.form,
            "where": self.where,
            "order": self.order,
            "turn": self.turn,
            "held": self.held.state(),
            "kept": by_script,
            "counted": self._counters.offsets if self.trains and not self._again else self._was_counted,
            "over": over,
            "suspended": self.alive() is not None if over and self._segments else self.was_suspended,
            "passes": passes,
            "drift": {} if passes else drift or self.drift,  # a pass that goes on draws all of its epoch again
        }

    def _pass_state(self, one: _Segment, by_script: bool) -> dict[str, Any]:
        return one.record.state(one.record.given if by_script else one.trained)

    def load_state(self, state: dict[str, Any]) -> None:
        self.order, self.turn = int(state["order"]), str(state["turn"])
        self.held.load_state(state["held"])
        self.was_suspended = bool(state["suspended"])
        self.was_over, self._again = bool(state["over"]), list(state["passes"])
        self.trains = self.was_over or bool(self._again)
        self.is_restored = True
        self.drift, self._kept = dict(state["drift"]), bool(state["kept"])
        self._was_counted = [list(one) for one in state["counted"]]
