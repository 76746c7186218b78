"""Every torch DataLoader that a script iterates by itself, and where its loops stand in them.

Law: a pass over a loader belongs to the loop if a step boundary comes while its iterator lives; one that lives and dies
between two boundaries is an evaluation, or a look, and leaves no trace. After a resume the first pass that is begun at
the same place of the script, over a loader that is made of the same parts, goes on. One that had come to its end gives
nothing if the script comes by it again in the same turn of its loops.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from autoresume.base.call_site import Lasting, call_site, is_same_place, lasting, where
from autoresume.data import batch_observer, own_state, wrappers
from autoresume.data.batch_observer import NotedBatches
from autoresume.data.loader_pass import LoaderPass
from autoresume.data.own_state import OwnState
from autoresume.data.reader import Reader
from autoresume.data.resumable_loader import Fetching
from autoresume.errors import UsageError

log = logging.getLogger("autoresume")


class Following:
    """`turn` tells in which turn of the script's loops it is, `kept` which tensors are in `run.state`."""

    def __init__(self, turn: Callable[[], str], fetching: Fetching, kept: Callable[[], list[torch.Tensor]]) -> None:
        self.fetched = 0
        """Batches that were handed out, of all loaders that are followed."""
        self._turn, self._fetching, self._kept = turn, fetching, kept
        self._readers: list[Reader] = []
        self._waiting: list[dict[str, Any]] = []
        self._own: weakref.WeakKeyDictionary[DataLoader[Any], OwnState] = weakref.WeakKeyDictionary()
        self._ahead: weakref.WeakKeyDictionary[DataLoader[Any], int] = weakref.WeakKeyDictionary()
        self._left_alone: weakref.WeakSet[DataLoader[Any]] = weakref.WeakSet()
        self._order = 0
        self._is_first = False
        """The next boundary is the first one after a resume."""
        self._told: set[str] = set()

    def say(self, loader: Any, follow: bool, fetched_ahead: int | None) -> None:
        """What `run.follow` says of a loader. Raises UsageError."""
        if not isinstance(loader, DataLoader):
            raise UsageError(
                f"run.follow takes a torch DataLoader, not a {type(loader).__name__}; a loader of run.loader is "
                "followed as it is, and takes fetched_ahead when it is made"
            )
        if not follow:
            self._left_alone.add(loader)
        if fetched_ahead is not None:
            self._ahead[loader] = fetched_ahead

    def leaves_alone(self) -> bool:
        """The script goes on by itself in some loader."""
        return bool(self._left_alone)

    def generators(self) -> list[Any]:
        """Generators that are part of a position."""
        return [one for loader, own in list(self._own.items()) for one in own.generators(loader)]

    def own_state(self, loader: DataLoader[Any], wrapper: Any = None) -> OwnState:
        if loader not in self._own:
            self._own[loader] = OwnState(loader, wrapper)
        return self._own[loader]

    # -- the seam -------------------------------------------------------------------------------------

    def begin(self, loader: DataLoader[Any], make: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """What a loop gets in place of `make()`."""
        if loader in self._left_alone or _restores_itself(loader):
            return NotedBatches(make()) if batch_observer.is_on() else make()
        site = call_site()
        place, form = lasting(site), own_state.form(loader)
        reader = self._known(loader, place) or self._take_waiting(loader, place, form, where(site))
        reader = reader or self._successor(place, form) or self._new(place, form, where(site))
        reader.loader = weakref.ref(loader)
        wrapper = wrappers.wrapper_of(loader)
        ahead = self._ahead.get(loader, wrappers.batches_held(wrapper))
        if ahead is not None:
            reader.held.say(ahead)
        own = self.own_state(loader, wrapper)
        return self._begin(reader, loader, own, make)

    def _begin(
        self, reader: Reader, loader: DataLoader[Any], own: OwnState, make: Callable[[], Iterator[Any]]
    ) -> Iterator[Any]:
        turn = self._turn()
        if reader.drift:
            own.put_drift(loader, reader.drift)
            reader.drift = {}
        if reader.gives_nothing(turn):
            log.info("%s: this loop had come to its end before the resume, and gives nothing now", reader.where)
            if reader.was_suspended:
                wrappers.after_empty_pass(own.wrapper())
            return iter(())
        again = reader.next_pass()
        if again is not None and again["ended"] and reader.turn != turn:
            again = None
        if again is not None:
            self._fetching.going_on()
        made = LoaderPass(loader, own, make, again)
        made.before_batch = lambda: self._fetching.fetching() if reader.trains else None
        self._order += 1
        reader.began(made, self._order, turn, again)
        made.on_batch = lambda record, batch: self._note(reader, batch)
        return made

    def _note(self, reader: Reader, batch: Any) -> None:
        self.fetched += 1
        reader.note(batch)

    def _known(self, loader: DataLoader[Any], place: Lasting) -> Reader | None:
        return next((one for one in self._readers if one.loader() is loader and one.place == place), None)

    def _successor(self, place: Lasting, form: str) -> Reader | None:
        """The reader of a loader that is gone: this one is made in its place."""
        there = (one for one in self._readers if one.place == place and one.form == form)
        return next((one for one in there if one.loader() is None and not one.is_alive), None)

    def _take_waiting(self, loader: DataLoader[Any], place: Lasting, form: str, name: str) -> Reader | None:
        fitting = [state for state in self._waiting if state["form"] == form and is_same_place(state["place"], place)]
        if not fitting:
            return None
        turn = self._turn()
        best = min(fitting, key=lambda state: (state["turn"] != turn, int(state["order"])))
        self._waiting.remove(best)
        made = self._new(place, form, name)
        made.load_state(best)
        return made

    def _new(self, place: Lasting, form: str, name: str) -> Reader:
        made = Reader(place, form, name)
        self._readers.append(made)
        return made

    @property
    def trains(self) -> bool:
        """Whether a step boundary has come in a pass over one of the script's loaders."""
        return any(reader.trains for reader in self._readers)

    # -- the boundary ---------------------------------------------------------------------------------

    def commit(self) -> None:
        """A step boundary. Raises UsageError where the script passes over batches that were passed over already."""
        for reader in self._readers:
            for message in reader.boundary():
                self.tell(message)
        if self._is_first:
            self._is_first = False
            self._tell_of_others()
        self._readers = [one for one in self._readers if one.trains or one.is_alive or one.loader() is not None]

    def _tell_of_others(self) -> None:
        """The first boundary after a resume: what was trained on before it, and now?"""
        new = next((one for one in self._readers if one.trains and not one.is_restored), None)
        for state in self._waiting if new is not None else ():
            if state["passes"] and new is not None:
                self.tell(
                    f"{new.where}: the run was interrupted in the middle of the loader of {state['where']} "
                    f"({state['form']}), behind batch {state['passes'][0]['position']}; what is trained on now is "
                    f"another one ({new.form}), and is taken as it is."
                )

    def refuse_untrained_end(self) -> None:
        """The script comes to its end. Raises UsageError where it has passed over what it had to train on."""
        for reader in self._readers:
            reader.refuse_untrained_end()

    def tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            log.warning("%s", message)

    # -- over lives -----------------------------------------------------------------------------------

    def state(self) -> list[dict[str, Any]]:
        kept = self._kept() if any(one.trains and one.held.ahead for one in self._readers) else []
        states = []
        for reader in self._readers:
            loader = reader.loader()
            drift = self._own[loader].drift(loader) if loader is not None and loader in self._own else {}
            state = reader.state(drift, kept)
            if state is not None:
                states.append(state)
        # Numbered anew: how often a pass was begun depends on how often the run was interrupted.
        ordered = sorted([*self._waiting, *states], key=lambda state: int(state["order"]))
        return [{**state, "order": number} for number, state in enumerate(ordered, 1)]

    def load_state(self, states: list[Mapping[str, Any]]) -> None:
        self._waiting = [dict(state) for state in states]
        self._is_first = True
        self._order = max((int(state["order"]) for state in states), default=0)
        begun, self._readers = self._readers, []
        for reader in begun:
            made, loader = reader.alive(), reader.loader()
            if made is None or loader is None or made.record.given:
                continue
            restored = self._take_waiting(loader, reader.place, reader.form, reader.where)
            if restored is not None:
                restored.loader = reader.loader
                again = restored.next_pass()
                made.restart(again)
                restored.began(made, reader.order, reader.turn, again)
                made.on_batch = lambda record, batch, reader=restored: self._note(reader, batch)  # type: ignore[misc]


def _restores_itself(loader: Any) -> bool:
    """A loader with a state of its own (torchdata's) that the script has put back."""
    return getattr(loader, "next_iter_state", None) is not None or getattr(
        loader, "_initial_iter_for_state_dict", False
    )
