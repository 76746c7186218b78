"""Every crash is a drill: what each step saw is noted, and compared where a later life trains the step again.

Law: a step that was trained again and came out otherwise is told, once in a life, with what came first, a likely
cause and a remedy; where something that the script is made of has changed since, that is what is told. Nothing here
changes what the training computes, and a step waits for no device.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from autoresume.audit import causes, fingerprint, holdings, losses, verdict
from autoresume.audit.causes import Cause, Evidence
from autoresume.audit.gradients import Gradients
from autoresume.audit.holdings import Held, Holdings
from autoresume.audit.note import Difference, Note, differences, plain_state, relative
from autoresume.audit.note_file import NoteFile
from autoresume.audit.verdict import Retrained
from autoresume.data import batch_observer
from autoresume.errors import NotReproduced
from autoresume.format import names

log = logging.getLogger("autoresume")

_ROUNDING = 1e-4
"""Relative: what another order of the same sums makes of a loss, in some steps."""
_CONCERNS = {
    "batch": ("generator",),
    "option": ("scheduler", "value"),
    "loss": ("scheduler", "generator", "optimizer", "model", "tensor", "object", "value"),
    "metric": ("scheduler", "generator", "model", "tensor", "object", "value"),
}
"""Of what nobody tracks, what can lead to such a difference."""


@dataclass(frozen=True)
class Beginning:
    """A life begins behind `step`. `exact`: with a checkpoint of this run, taken over as it was; `changes` says
    what the script is made of that was otherwise then."""

    step: int
    life: int
    ranks: int
    exact: bool
    changes: list[str] = field(default_factory=list)
    unseeded: list[str] = field(default_factory=list)
    """Generators that stood elsewhere than in the run's first life before anything was restored."""


class Audit:
    """Of one rank in one life. `asked` is "warn", "stop" or "off"; `elsewhere` as in `Holdings`; `given` are the
    tracked objects as the script gave them; `left_alone` tells whether the run was told not to follow a loader."""

    def __init__(
        self,
        folder: Path,
        asked: str,
        elsewhere: Callable[[], Iterable[Any]],
        given: Callable[[], Iterable[Any]],
        left_alone: Callable[[], bool],
    ) -> None:
        self._folder, self._asked = folder, asked
        self._given, self._left_alone = given, left_alone
        self._rank = 0
        self._holdings = Holdings(elsewhere)
        self._gradients = Gradients(self._warn)
        self._elsewhere = elsewhere
        self._began = Beginning(0, 0, 1, False)
        self._before: dict[int, Note] = {}
        """Steps of an earlier life that this one has still to come by."""
        self._same: Retrained | None = None
        """As long as nothing differed."""
        self._at_begin: Held | None = None
        self._pending: deque[Note] = deque()
        self._metrics: dict[str, Any] = {}
        self._observer = batch_observer.BatchObserver(fingerprint.of_value)
        self._generators = fingerprint.Generators()
        self._losses: losses.Losses | None = None
        self._file: NoteFile | None = None
        self._machine = ""
        self._machines: dict[int, str] = {}
        self._is_first = True
        self._untold: str | None = None
        if asked != "off":
            batch_observer.install_observer(self._observer)

    def restored(self, began: Beginning, rank: int, objects: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        self._began, self._rank = began, rank
        self._holdings.restored(objects)
        if self._asked == "off":
            return
        self._observer.forget()
        self._losses = losses.Losses()
        self._file = NoteFile(self._folder / names.notes_file(rank))
        found = self._file.begin(began.step, began.ranks)
        self._machine = machine()
        if began.exact and found:
            self._before = found
            self._machines = {note.life: note.machine for note in found.values() if note.machine}
            with contextlib.suppress(Exception):  # attributes of somebody else's objects may raise anything
                self._at_begin = holdings.look(objects, [*self._given(), *self._elsewhere()], state)

    def boundary(self, step: int, epoch: int, objects: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """`step` is complete. Raises NotReproduced."""
        self._gradients.boundary(objects)
        if self._losses is None:
            return
        if self._untold is not None:
            self._say()
        began, metrics = self._began, self._metrics
        note = Note(
            step,
            began.life,
            began.ranks,
            [text for _, text in self._observer.take()],
            self._losses.take(),
            _rates(objects),
            self._generators.look(),
            plain_state(state) if state else {},
            metrics,
        )
        if metrics:
            self._metrics = {}
            note.metrics = {name: value for name, value in metrics.items() if value not in note.losses}
        if self._is_first:
            self._is_first, note.machine = False, self._machine
        if not self._pending and _is_plain(note):
            self._settle(note, objects, state)
            return
        self._pending.append(note)
        while self._pending and _is_ready(self._pending[0]):
            self._settle(_settled(self._pending.popleft()), objects, state)

    def over(self, step: int) -> bool:
        """A drill ends where it was told to; a training doesn't."""
        return False

    def logged(self, values: Mapping[str, Any]) -> None:
        if self._losses is None or self._rank:
            return
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                number = losses.number_of(value) if value.numel() == 1 else None
                if number is not None:
                    self._metrics[name] = number
            elif type(value) is float and "loss" in name.lower():
                self._metrics[name] = value

    def saving(self, step: int, objects: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """A save of `step` begins."""
        if self._file is not None:
            self._file.saved(step)
        told: list[str] = []
        with contextlib.suppress(Exception):  # attributes of somebody else's objects may raise anything
            told = self._holdings.late_groups(objects)
            told += self._holdings.at_save(objects, self._given(), state)
        for message in told:
            self._warn(message)

    def _warn(self, message: str) -> None:
        if self._rank == 0:
            log.warning("%s", message)

    def close(self, finished: bool) -> None:
        self._gradients.close()
        batch_observer.remove_observer(self._observer)
        if self._losses is not None:
            self._losses.remove()
        if self._file is not None:
            with contextlib.suppress(RuntimeError):  # CUDA's, which has ended the training, too
                while self._pending:
                    self._file.append(_settled(self._pending.popleft()))
            self._file.close(finished)
        self._tell_same()
        self._say()

    # -- the comparison -------------------------------------------------------------------------------

    def _settle(self, note: Note, objects: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        assert self._file is not None
        before = self._before.pop(note.step, None) if self._before else None
        if before is not None:
            found = list(differences(before, note, _names_of_rates(objects)))
            if found:
                self._before.clear()
                self._tell_difference(before, note, found, (objects, state))
            else:
                first = self._same.first if self._same is not None else note.step
                self._same = Retrained(note.life, self._rank, before.life, first, note.step)
        self._file.append(note)
        if self._same is not None and not self._before:
            self._tell_same()

    def _tell_same(self) -> None:
        """All that was to be trained again was, and came out as before."""
        told, self._same = self._same, None
        if told is not None and self._rank == 0:
            log.info("%s%s", "rank 0: " if self._began.ranks > 1 else "", told.words())
            verdict.write(self._folder, told)

    def _tell_difference(
        self, before: Note, note: Note, found: list[Difference], held: tuple[Mapping[str, Any], Mapping[str, Any]]
    ) -> None:
        at, changes = found[0], self._began.changes
        cause = self._cause(before, note, found, *held)
        self._holdings.told()
        told = {
            "step": note.step,
            "component": at.component,
            "words": at.words(before.life),
            "cause": cause.name,
            "why": cause.why,
            "remedy": cause.remedy,
            "expected": changes,
        }
        self._same = None
        first = min(self._began.step + 1, note.step)
        verdict.write(self._folder, Retrained(note.life, self._rank, before.life, first, note.step, told))
        if changes:
            message = "step %d, trained again after the resume: %s; this has changed since: %s"
            log.info(message, note.step, at.words(before.life), "; ".join(changes[:4]))
            return
        message = (
            f"step {note.step}, rank {self._rank}, trained again after the resume from step {self._began.step}: "
            f"{at.words(before.life)}. Likely cause: {cause.name}: {cause.why}. What to do: {cause.remedy}"
        )
        if self._asked == "stop":
            raise NotReproduced(
                f"{message}. Nothing of it was saved (the option retrained is 'stop'); with 'warn' it is trained on."
            )
        self._untold = message
        if self._began.ranks == 1:
            self._say()

    def _say(self) -> None:
        """A boundary later than it was found: ranks pull each other along, and the one that parted first tells it."""
        message, self._untold = self._untold, None
        first = next((one for one in verdict.read(self._folder) if one.life == self._began.life), None)
        if message is not None:
            is_first = first is None or first.rank == self._rank
            log.log(logging.WARNING if is_first else logging.DEBUG, "%s", message)

    def _cause(
        self,
        before: Note,
        note: Note,
        found: list[Difference],
        objects: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> Cause:
        at, suspects, loose = found[0], [], []
        with contextlib.suppress(Exception):  # attributes of somebody else's objects may raise anything
            now = holdings.look(objects, [*self._given(), *self._elsewhere()], state)
            suspects = holdings.changed(self._at_begin, now) if self._at_begin is not None else []
            loose = [shown for kind, _, shown in now.found.values() if kind == "optimizer"]
        concerns = _CONCERNS.get(at.component, ())
        machines = self._machines.get(before.life), self._machine
        apart = relative(at)
        return causes.likely(
            Evidence(
                at.component,
                at.name,
                suspects=causes.telling(one for one in suspects if one.kind in concerns),
                loose=loose if at.component in ("loss", "metric") else (),
                has_tracked_optimizer=any(isinstance(one, torch.optim.Optimizer) for one in objects.values()),
                workers=self._observer.workers,
                left_alone=self._left_alone(),
                moved=any(one.component == "generator" for one in found),
                first_after_resume=note.step == self._began.step + 1,
                machines=(str(machines[0]), machines[1]) if machines[0] not in (None, machines[1]) else None,
                is_rounding=apart is not None and apart < _ROUNDING,
                undisturbed=False,
                unseeded=self._began.unseeded,
            )
        )


def _rates(objects: Mapping[str, Any]) -> list[Any]:
    """The learning rates of each tracked optimizer; none that a device would have to be asked for."""
    found = []
    for value in objects.values():
        if isinstance(value, torch.optim.Optimizer):
            for group in value.param_groups:
                rate = group.get("lr")
                if isinstance(rate, torch.Tensor):
                    rate = rate.item() if rate.device.type == "cpu" and rate.numel() == 1 else None
                found.append(rate)
    return found


def _names_of_rates(objects: Mapping[str, Any]) -> list[str]:
    optimizers = {name: one for name, one in objects.items() if isinstance(one, torch.optim.Optimizer)}
    return [
        f"{name}'s group {index}" if len(one.param_groups) > 1 else name
        for name, one in optimizers.items()
        for index in range(len(one.param_groups))
    ]


def _is_plain(note: Note) -> bool:
    """All of its numbers are there."""
    for value in note.losses:
        if type(value) is not float:
            return False
    return not note.metrics or all(type(value) is float for value in note.metrics.values())


def _is_ready(note: Note) -> bool:
    return all(map(losses.is_ready, note.losses)) and all(map(losses.is_ready, note.metrics.values()))


def _settled(note: Note) -> Note:
    note.losses = [losses.settled(value) for value in note.losses]
    note.metrics = {name: losses.settled(value) for name, value in note.metrics.items()}
    return note


def machine() -> str:
    """What makes the sums here: the processor, or the device."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""
