"""Where a run stands in its data: its loaders, by name, and what a checkpoint says of them.

Law: a loader without a name is known by its place in the script, and gets a name in the order in which a
script comes by its places. What is made at a place again, in another turn of the script's ranges, is the
loader that was made there before: it begins that one's next epoch. A position that a checkpoint brought
waits for its loader, and is kept if that is not made.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from autoresume.base.call_site import CallSite, where
from autoresume.data.following import Following
from autoresume.data.foreign import ForeignLoader
from autoresume.data.loader import Place, RunLoader, make_loader
from autoresume.data.ranges import Ranges
from autoresume.data.resumable_loader import Fetching, ResumableLoader
from autoresume.data.stateful import StatefulRunLoader
from autoresume.data.workers import end_workers
from autoresume.errors import UsageError
from autoresume.run.resources import Resources
from autoresume.state import rng

log = logging.getLogger("autoresume")

_UNNAMED = re.compile(r"loader\d+")


@dataclass
class _Known:
    """A loader of the script's. `turn` is the one in which it was made, or given to `run.batches` if foreign."""

    name: str
    loader: ResumableLoader
    turn: str
    anew: bool
    """It is made anew in each turn of a range."""
    dataset: Callable[[], Any]
    batch_size: int | None
    order: int = 0
    """Which ones were made, or given to `run.batches`, after it."""
    by_epochs: bool = False
    """`run.batches(loader, epochs=...)` counts its epochs."""

    def state(self) -> dict[str, Any]:
        return {"made": self.turn, "anew": self.anew, "order": self.order, "loop": self.loader.count.state()}


class Positions:
    """`data_seed` decides the order of data. `fetching` is told when batches are fetched, `kept` tells which tensors
    `run.state` has."""

    def __init__(self, resources: Resources, fetching: Fetching, kept: Callable[[], list[torch.Tensor]]) -> None:
        self.data_seed = resources.run_file.seed
        self._ranges = Ranges()
        self.range = self._ranges.iterate
        self.following = Following(self._ranges.turn, fetching, kept)
        self._resources = resources
        self._fetching = fetching
        self._loaders: dict[str, _Known] = {}
        self._sites: dict[CallSite, list[_Known]] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._order = 0
        self._warned = False

    # -- loaders ----------------------------------------------------------------------------------

    def make_loader(
        self, name: str | None, site: CallSite, dataset: Any, **options: Any
    ) -> RunLoader | StatefulRunLoader:
        """What `run.loader` returns. Raises UsageError."""
        ranks = self._resources.ranks
        place = Place(ranks.rank, ranks.world_size, self._ranges.turn, self._fetching)
        made = make_loader(dataset, place=place, **options)
        self._register(name, site, made, dataset)
        return made

    def refuse_others_ranks(self) -> None:
        """The ranks have joined. Raises UsageError if a loader was made for others: each would get the same batches."""
        ranks = self._resources.ranks
        for site, made in self._sites.items():
            for known in made:
                order = known.loader.order if isinstance(known.loader, RunLoader) else None
                if order is not None and (order.rank, order.world_size) != (ranks.rank, ranks.world_size):
                    raise UsageError(
                        f"the loader of {where(site)} was made when this process counted as rank {order.rank} of "
                        f"{order.world_size}, and the process group says rank {ranks.rank} of {ranks.world_size}: "
                        "ranks would train on the same batches. Call torch.distributed.init_process_group(...) before "
                        "run.loader(...)."
                    )

    def position_of(self, loader: Any, site: CallSite, by_epochs: bool) -> ResumableLoader:
        """The position of anything that `run.batches` is given."""
        known = next(
            (one for one in self._loaders.values() if one.loader is loader or _users_loader(one.loader) is loader), None
        )
        if known is None:
            if isinstance(loader, (RunLoader, StatefulRunLoader)):
                return loader  # another one has taken its place
            ranks, turn = self._resources.ranks, self._ranges.turn
            made = ForeignLoader(loader, ranks.world_size, turn, self.following)
            known = self._register(None, site, made, getattr(loader, "dataset", None))
        elif isinstance(known.loader, ForeignLoader):
            self._note_turn(known)
        known.by_epochs = by_epochs
        if isinstance(known.loader, ForeignLoader):
            known.loader.counts_epochs = by_epochs
        return known.loader

    def _register(self, name: str | None, site: CallSite, made: ResumableLoader, dataset: Any) -> _Known:
        """Give a loader its name, its seed and its position."""
        turn, own = self._ranges.turn(), not isinstance(made, ForeignLoader)
        batch_size = getattr(made if own else _users_loader(made), "batch_size", None)
        former = self._predecessor(site, turn, dataset, batch_size)
        if former is not None and name not in (None, former.name):
            former = None
        if former is None and name in self._loaders:
            raise UsageError(f"two loaders are called {name!r}; give each its name")
        if former is not None:
            made.reseed(self._seed_of(former.name))
            made.follow(former.loader.state_dict())
            former.loader, former.anew, former.dataset = made, True, _weak(dataset)
            self._note_turn(former)
            return former
        known = _Known(name or self._new_name(turn), made, turn, own and bool(turn), _weak(dataset), batch_size)
        waiting = self._waiting.get(known.name)
        if waiting is not None and waiting["made"] == turn:
            known.order = int(waiting["order"])  # it was made in this turn before the resume
        else:
            self._note_turn(known)
        self._loaders[known.name] = known
        self._sites.setdefault(site, []).append(known)
        made.reseed(self._seed_of(known.name))
        self._take_waiting(known)
        return known

    def _note_turn(self, known: _Known) -> None:
        self._order += 1
        known.turn, known.order = self._ranges.turn(), self._order

    def _predecessor(self, site: CallSite, turn: str, dataset: Any, batch_size: int | None) -> _Known | None:
        """The loader that one which is made now takes the place of.

        In a turn of a range the first one made at a place follows the first that was made there in an earlier turn,
        and so on; but each task of `run.tasks` has loaders of its own.
        Outside of ranges one follows the last if that came to its end and is over the same dataset.
        A DataLoader that somebody still holds may be used again, and is not followed.
        """
        there = self._sites.get(site, [])
        if turn:
            others = (one for one in there if one.turn != turn and _tasks(one.turn) == _tasks(turn))
            return next((one for one in others if not _is_held(one.loader)), None)
        former = there[-1] if there and there[-1].loader.over and not there[-1].by_epochs else None
        if former is None or dataset is None or _is_held(former.loader):
            return None
        if former.dataset() is dataset and former.batch_size == batch_size:
            return former
        if not self._warned and self._resources.ranks.rank == 0:
            self._warned = True
            log.warning(
                "a loader is made anew at the same place, in a loop that the run doesn't know: after a resume it is "
                "not certain which of them goes on. Loop over run.epochs(...) or run.range(...) there."
            )
        return None

    def _new_name(self, turn: str) -> str:
        """The name of a loader that waits for being made in this very turn, else the next in order."""
        waiting = [name for name, state in self._waiting.items() if turn and state["made"] == turn]
        waiting.sort(key=lambda name: int(self._waiting[name]["order"]))
        free = (f"loader{index}" for index in range(len(self._loaders) + len(self._waiting) + 1))
        names = (*(name for name in waiting if _UNNAMED.fullmatch(name)), *free)
        others = {name for name, state in self._waiting.items() if _tasks(str(state["made"])) != _tasks(turn)}
        return next(name for name in names if name not in self._loaders and name not in others)

    def _take_waiting(self, known: _Known) -> None:
        state = self._waiting.pop(known.name, None)
        if state is None:
            return
        if state["anew"] and state["made"] != known.turn:
            known.loader.follow(state)
        else:
            known.loader.load_state_dict(state)
        known.anew = known.anew or bool(state["anew"])
        known.loader.count.load_state(state["loop"])

    def set_data_seed(self, seed: int) -> None:
        self.data_seed = seed
        for name, known in self._loaders.items():
            known.loader.reseed(self._seed_of(name))

    def _seed_of(self, loader: str) -> int:
        return rng.mix_seed(self.data_seed, *loader.encode())  # by name: the order of their making may change

    def describe(self) -> dict[str, Any]:
        """What the loaders that there are so far are made of."""
        return {name: _described(known) for name, known in self._loaders.items()}

    def commit(self) -> int:
        """A step boundary; the samples that were consumed since the last one."""
        self.following.commit()
        consumed = 0
        for known in self._loaders.values():
            consumed += known.loader.commit()
            for problem in known.loader.problems():
                self.following.tell(f"{known.name}: {problem}")
        return consumed

    # -- over lives -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        made = {name: {**known.loader.state_dict(), **known.state()} for name, known in self._loaders.items()}
        loaders = {**self._waiting, **made}
        return {"loaders": loaders, "followed": self.following.state(), "ranges": self._ranges.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._waiting = dict(state["loaders"])
        self._order = max((int(one["order"]) for one in self._waiting.values()), default=0)
        self._ranges.load_state(state["ranges"])
        self.following.load_state(state.get("followed", []))
        for known in self._loaders.values():
            self._take_waiting(known)

    @property
    def has_loaders(self) -> bool:
        return bool(self._loaders) or self.following.trains

    @property
    def even(self) -> bool:
        """Whether all ranks are in the same epoch and sample at each step, by how their data are dealt out."""
        return bool(self._loaders) and all(isinstance(known.loader, RunLoader) for known in self._loaders.values())

    def end(self, finished: bool) -> None:
        """End the data workers, at once or, where the script may go on with other loaders, at its end."""
        loaders = [known.loader for known in self._loaders.values()]
        if finished:
            for loader in loaders:
                loader.shut_down_workers()
            atexit.register(end_workers, [])
        else:
            end_workers(loaders)


def _tasks(turn: str) -> list[str]:
    """Of a turn of ranges, those of `run.tasks`."""
    return [part for part in turn.split("/") if part.startswith("tasks")]


def _described(known: _Known) -> dict[str, Any]:
    dataset = known.dataset()
    found: dict[str, Any] = {"dataset": type(dataset).__qualname__, "batch_size": known.batch_size}
    with contextlib.suppress(TypeError, NotImplementedError):  # an iterable one
        found["samples"] = len(dataset)
    return found


def _users_loader(loader: ResumableLoader) -> Any:
    """The loader of the user's own, if it is one and somebody still holds it."""
    return loader.loader if isinstance(loader, ForeignLoader) else None


def _is_held(loader: ResumableLoader) -> bool:
    """Whether it is a DataLoader that the script may use again."""
    return isinstance(_users_loader(loader), DataLoader)


def _weak(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: None
