"""Training scripts in one process, put together of parts: a loader, a loop around it, interruptions.

Law: a program runs without autoresume, or under it; what it logs for each step (batches, counters, random numbers) is
all that counts. Each life begins as a new process would: seeded, with objects of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

from autoresume import autoresume

Log = dict[int, Any]


class Noisy(Dataset[torch.Tensor]):
    """Items draw from all generators, where they are read in the training's own process."""

    def __init__(self, count: int, augment: bool) -> None:
        self.count, self.augment = count, augment

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = random.random() + float(np.random.rand()) + float(torch.rand(())) if self.augment else 0.0
        return torch.tensor([float(index), noise])


class OwnNoise(Noisy):
    """A dataset with a generator of its own, and a counter."""

    def __init__(self, count: int, augment: bool) -> None:
        super().__init__(count, augment)
        self.random, self.reads = np.random.default_rng(4), 0

    def __getitem__(self, index: int) -> torch.Tensor:
        self.reads += 1
        return torch.tensor([float(index), float(self.random.random()), float(self.reads)])


class Stream(IterableDataset[torch.Tensor]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(self.count):
            yield torch.tensor([float(index)])


class Lazy:
    """Shuffles part after part as it goes; no torch Sampler. `source` draws."""

    def __init__(self, count: int, batch: int, source: Any) -> None:
        self.count, self.batch, self.source = count, batch, source

    def __len__(self) -> int:
        return (self.count + self.batch - 1) // self.batch

    def __iter__(self) -> Iterator[list[int]]:
        part = 2 * self.batch
        for begin in range(0, self.count, part):
            items = list(range(begin, min(begin + part, self.count)))
            self.source.shuffle(items)
            yield from (items[at : at + self.batch] for at in range(0, len(items), self.batch))


class Counting(Sampler[int]):
    """Counts its own epochs, and shuffles a list in place from one to the next."""

    def __init__(self, count: int) -> None:
        self.epoch, self.items = 0, list(range(count))

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        random.Random(self.epoch).shuffle(self.items)
        self.epoch += 1
        return iter(list(self.items))


class Eager(Sampler[int]):
    """Draws when it is asked for an iterator, not for the first item."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.count).tolist())


class Ahead(DataLoader[Any]):
    """Looks ahead by one, as accelerate's does, and counts its passes."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.__dict__["passes"] = self.passes + 1
        batches = super().__iter__()
        try:
            batch = next(batches)
        except StopIteration:
            return
        for following in batches:
            yield batch
            batch = following
        yield batch


class AllTheTime(Sampler[int]):
    """Draws each item from torch's generator."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return (int(torch.randint(self.count, ())) for _ in range(self.count))


@dataclass
class Session:
    """What a program talks to: a run, or nothing."""

    log: Log
    run: Any = None
    cuts: dict[int, str] = field(default_factory=dict)
    state: Any = field(default_factory=SimpleNamespace)
    count: int = 0
    gradients: bool = True
    model: Any = field(default_factory=lambda: torch.nn.Linear(1, 1))

    def epochs(self, count: int) -> Iterator[int]:
        yield from self.run.epochs(count) if self.run else range(count)

    def batches(self, loader: Any) -> Iterator[Any]:
        return iter(self.run.batches(loader)) if self.run else iter(loader)

    @property
    def steps(self) -> int:
        return self.run.step_count if self.run else self.count

    def forward(self, batch: Any) -> None:
        """Forward and backward, without dropout: what is drawn is what `train` draws."""
        if self.gradients:
            self.model(batch.reshape(-1, 1)).sum().backward()

    def train(self, *batches: Any, at: Any = None) -> None:
        """All of a step but its boundary."""
        step = self.steps
        for batch in batches:
            self.forward(batch)
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        self.log[step] = [[batch.tolist() for batch in batches], at, drawn]
        how = self.cuts.pop(step, "")
        if how == "TERM":
            os.kill(os.getpid(), signal.SIGTERM)
        if how == "CRASH":
            raise Crash

    def boundary(self) -> None:
        self.count += 1
        if self.run:
            self.run.step()

    def step(self, *batches: Any, at: Any = None) -> None:
        self.train(*batches, at=at)
        self.boundary()


class Crash(Exception):
    pass


Make = Callable[[int], "DataLoader[Any]"]


def _of(dataset: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, **options)


def makers(workers: int, augment: bool) -> dict[str, Make]:
    """By name, what makes a loader over `count` items in batches of 3."""
    options: dict[str, Any] = {"num_workers": workers, "batch_size": 3}
    if workers:
        options["multiprocessing_context"] = "fork"
    whole = {key: value for key, value in options.items() if key != "batch_size"}

    def data(count: int) -> Noisy:
        return Noisy(count, augment)

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(6)

    return {
        "plain": lambda count: _of(data(count), **options),
        "shuffled": lambda count: _of(data(count), shuffle=True, **options),
        "generator": lambda count: _of(data(count), shuffle=True, generator=seeded(), **options),
        "replacement": lambda count: _of(
            data(count), sampler=torch.utils.data.RandomSampler(range(count), True, 2 * count, seeded()), **options
        ),
        "weighted": lambda count: _of(
            data(count), sampler=torch.utils.data.WeightedRandomSampler([1.0] * count, count), **options
        ),
        "distributed": lambda count: _of(data(count), sampler=DistributedSampler(range(count), 2, 1), **options),
        "lazy": lambda count: _of(data(count), batch_sampler=Lazy(count, 3, random), **whole),
        "lazy-own": lambda count: _of(data(count), batch_sampler=Lazy(count, 3, random.Random(1)), **whole),
        "lazy-numpy": lambda count: _of(data(count), batch_sampler=Lazy(count, 3, np.random.default_rng(1)), **whole),
        "lazy-legacy": lambda count: _of(data(count), batch_sampler=Lazy(count, 3, np.random.RandomState(1)), **whole),
        "counting": lambda count: _of(data(count), sampler=Counting(count), **options),
        "counting-batches": lambda count: _of(
            data(count), batch_sampler=BatchSampler(Counting(count), 3, True), **whole
        ),
        "eager": lambda count: _of(data(count), sampler=Eager(count), **options),
        "all-the-time": lambda count: _of(data(count), sampler=AllTheTime(count), **options),
        "no-batches": lambda count: _of(data(count), shuffle=True, **{**options, "batch_size": None}),
        "own-noise": lambda count: _of(OwnNoise(count, augment), shuffle=True, **options),
        "ahead": lambda count: Ahead(data(count), shuffle=True, **options),
        "stream": lambda count: _of(Stream(count), **options),
    }


# -- loops --------------------------------------------------------------------------------------------


def forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def doubled(loader: Any) -> Iterator[Any]:
    for batch in loader:
        yield 2 * batch


def evaluate(session: Session, test: Any) -> list[Any]:
    return [batch.tolist() for batch in test]


def for_each(session: Session, make: Make, count: int) -> None:
    train, test = make(count), make(count - 2)
    for epoch in session.epochs(3):
        if isinstance(getattr(train, "sampler", None), DistributedSampler):
            train.sampler.set_epoch(epoch + 1)
        for batch in train:
            session.step(batch)
        session.log["test", epoch] = evaluate(session, test)  # type: ignore[index]


def evaluated_inside(session: Session, make: Make, count: int) -> None:
    train, test = make(count), make(count)
    for _ in session.epochs(3):
        for batch in train:
            session.train(batch, at=evaluate(session, test) if session.steps % 2 else None)
            session.boundary()


def numbered(session: Session, make: Make, count: int) -> None:
    train = make(count)
    for _ in session.epochs(3):
        for number, batch in enumerate(train):
            session.step(batch, at=number)


def made_anew(session: Session, make: Make, count: int) -> None:
    for _ in session.epochs(3):
        for batch in make(count):
            session.step(batch)


def through_generator(session: Session, make: Make, count: int) -> None:
    train = make(count)
    for _ in session.epochs(3):
        for batch in doubled(train):
            session.step(batch)


def under_batches(session: Session, make: Make, count: int) -> None:
    train = make(count)
    for _ in session.epochs(3):
        for batch in session.batches(train):
            session.train(batch)
            session.count += 1


def pairs_under_batches(session: Session, make: Make, count: int) -> None:
    one, two = make(count), make(count + 4)
    for _ in session.epochs(2):
        for a, b in session.batches(zip(forever(one), two, strict=False)):
            session.train(a, b)
            session.count += 1


def pairs(session: Session, make: Make, count: int) -> None:
    one, two = make(count), make(count)
    for _ in session.epochs(2):
        for a, b in zip(one, two, strict=True):
            session.step(a, b)


def one_after_the_other(session: Session, make: Make, count: int) -> None:
    one, two = make(count), make(count)
    for _ in session.epochs(2):
        for loader in (one, two):
            for batch in loader:
                session.step(batch)


def endless(session: Session, make: Make, count: int) -> None:
    train, batches = make(count), None
    while session.steps < 12:
        if batches is None:
            batches = iter(train)
        batch = next(batches, None)
        if batch is None:
            batches = None
            continue
        session.step(batch)


def looked_ahead(session: Session, make: Make, count: int) -> None:
    train = make(count)
    for _ in session.epochs(3):
        batches = iter(train)
        following = next(batches, None)
        while following is not None:
            batch, following = following, next(batches, None)
            session.step(batch)


def looked_ahead_over_borders(session: Session, make: Make, count: int) -> None:
    batches = forever(make(count))
    following = next(batches)
    while session.steps < 13:
        batch, following = following, next(batches)
        session.step(batch)


def kept_ahead(session: Session, make: Make, count: int) -> None:
    batches = forever(make(count))
    resumed = bool(session.run and session.run.is_resumed)
    following = session.state.following if resumed else next(batches)
    while session.steps < 13:
        batch, following = following, next(batches)
        session.train(batch)
        session.state.following = following
        session.boundary()


def accumulated(session: Session, make: Make, count: int) -> None:
    train = make(count)
    for _ in session.epochs(3):
        held = []
        for batch in train:
            held.append(batch)
            session.forward(batch)
            if len(held) == 2:
                session.train(*held)
                session.boundary()
                held = []


def left_early(session: Session, make: Make, count: int) -> None:
    train = make(count)
    for _ in session.epochs(4):
        for number, batch in enumerate(itertools.islice(train, 3)):
            session.step(batch, at=number)


def numbered_batches(session: Session, make: Make, count: int) -> None:
    train = make(count)
    for _ in session.epochs(3):
        for number, batch in enumerate(session.batches(train)):
            session.train(batch, at=number)
            session.count += 1


def some_batches(session: Session, make: Make, count: int) -> None:
    """The last turn of each is left without asking for more."""
    for _ in session.epochs(3):
        for number, batch in enumerate(itertools.islice(session.batches(make(count)), 2), start=1):
            session.train(batch, at=number)
            session.count += 1


def draws_before_it_fetches(session: Session, make: Make, count: int) -> None:
    train = make(count)
    for _ in session.epochs(3):
        batches = iter(train)
        while True:
            drawn = float(torch.rand(()))
            batch = next(batches, None)
            if batch is None:
                break
            session.step(batch, at=drawn)


def draws_when_it_begins(session: Session, make: Make, count: int) -> None:
    """Behind run.restore(), in each life."""
    torch.rand(5)
    train = make(count)
    for _ in session.epochs(3):
        for batch in train:
            session.step(batch)


def counted(session: Session, make: Make, count: int) -> None:
    train = make(count)
    for _ in session.epochs(3):
        batches = iter(train)
        for number in range(len(train)):
            session.step(next(batches), at=number)


def counted_batches(session: Session, make: Make, count: int) -> None:
    train = make(count)
    for _ in session.epochs(3):
        batches = session.batches(train)
        for number in range(len(train)):
            session.train(next(batches), at=number)
            session.count += 1


def skipped_by_itself(session: Session, make: Make, count: int) -> None:
    """A script that goes on by itself: it passes over what it knows to be done."""
    train = make(count)
    done = session.steps
    for batch in train:
        if done:
            done -= 1
            continue
        session.step(batch)


def left_alone(session: Session, make: Make, count: int) -> None:
    """The same, and says so: the run keeps away from it."""
    train = make(count)
    if session.run:
        session.run.follow(train, False)
    done = session.steps
    for batch in train:
        if done:
            done -= 1
            continue
        session.step(batch)


def said_to_be_ahead(session: Session, make: Make, count: int) -> None:
    train = make(count)
    if session.run:
        session.run.follow(train, fetched_ahead=1)
    for _ in session.epochs(3):
        batches = iter(train)
        following = next(batches, None)
        while following is not None:
            batch, following = following, next(batches, None)
            session.step(batch)


def moved(session: Session, make: Make, count: int) -> None:
    """The loop stands elsewhere in the script since."""
    train = make(count)
    if session.run.is_resumed:
        for batch in train:
            session.step(batch)
    else:
        for batch in train:
            session.step(batch)


def checked_first(session: Session, make: Make, count: int) -> None:
    """A life begins with an evaluation of another loader, through the same generator."""
    train, test = make(count), make(count - 2)
    evaluate(session, doubled(test))
    for _ in session.epochs(2):
        for batch in doubled(train):
            session.step(batch)


def in_a_thread(session: Session, make: Make, count: int) -> None:
    """Fetches ahead in a thread, as prefetchers do."""
    fetched: queue.Queue[Any] = queue.Queue(2)

    def fetch() -> None:
        for batch in make(count):
            fetched.put(batch)
        fetched.put(None)

    threading.Thread(target=fetch, daemon=True).start()
    while (batch := fetched.get()) is not None:
        session.step(batch)


def cycled(session: Session, make: Make, count: int) -> None:
    for batch in itertools.islice(itertools.cycle(make(count)), 12 - session.steps):
        session.step(batch)


def another_each_life(session: Session, make: Make, count: int) -> None:
    for batch in make(count + session.steps):
        session.step(batch)


ORDINARY = [
    one.__name__
    for one in (
        for_each,
        evaluated_inside,
        numbered,
        made_anew,
        through_generator,
        under_batches,
        pairs_under_batches,
        pairs,
        one_after_the_other,
        endless,
        looked_ahead,
        looked_ahead_over_borders,
        kept_ahead,
        accumulated,
        left_early,
        numbered_batches,
        draws_before_it_fetches,
        draws_when_it_begins,
    )
]
LOOPS: dict[str, Callable[[Session, Make, int], None]] = {
    **{name: one for name, one in globals().items() if name in ORDINARY},
    **{
        one.__name__: one
        for one in (
            some_batches,
            counted,
            counted_batches,
            skipped_by_itself,
            left_alone,
            said_to_be_ahead,
            moved,
            checked_first,
            in_a_thread,
            cycled,
            another_each_life,
        )
    },
}


# -- lives --------------------------------------------------------------------------------------------


def _begin_process() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


def plain(loop: str, make: Make, count: int, gradients: bool = True) -> Log:
    """What the script logs without autoresume."""
    log: Log = {}
    _begin_process()
    LOOPS[loop](Session(log, gradients=gradients), make, count)
    return log


@dataclass
class Interrupted:
    log: Log
    told: list[str]
    """Warnings and errors."""
    lives: int


def interrupted(
    loop: str, make: Make, count: int, folder: Path, cuts: dict[int, str], save_every: int, gradients: bool = True
) -> Interrupted:
    """The same under autoresume, in as many lives as it takes."""
    log: Log = {}
    told: list[str] = []
    cuts = dict(cuts)

    @autoresume(run_dir=str(folder), save_every=save_every)
    def main(run: Any) -> None:
        _begin_process()
        session = Session(log, run, cuts, run.state, gradients=gradients)
        run.track(model=session.model)
        run.restore()
        LOOPS[loop](session, make, count)

    with _listening(told):
        for life in range(1, 60):
            try:
                main()
            except SystemExit as error:
                if error.code != 75:  # refused, with a message
                    return Interrupted(log, told, life)
            except Crash:
                pass
            else:
                return Interrupted(log, told, life)
    raise AssertionError("no end")


@contextlib.contextmanager
def _listening(told: list[str]) -> Iterator[None]:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger, handler = logging.getLogger("autoresume"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
