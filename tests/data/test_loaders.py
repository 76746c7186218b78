"""Loaders without a process around them: what is loaded, and by whom."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from autoresume.data.every_loader import EveryLoader
from autoresume.data.following import Following
from autoresume.data.foreign import ForeignLoader
from autoresume.data.loader import Place, RunLoader, make_loader
from autoresume.data.workers import WorkerInit


class Counted(Dataset[int]):
    """It knows which of its items were loaded; it has a state, as torchdata's datasets may."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> int:
        self.loaded.append(index)
        return index

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("nobody asked for it")


class Unseen:
    """Nobody looks at what is fetched."""

    def going_on(self) -> None:
        pass

    def fetching(self) -> None:
        pass


def outside() -> str:
    return ""


def ours(dataset: Counted) -> RunLoader:
    made = make_loader(
        dataset,
        batch_size=4,
        shuffle=True,
        drop_last=False,
        fetched_ahead=0,
        options={},
        place=Place(0, 1, outside, Unseen()),
    )
    made.reseed(3)
    assert isinstance(made, RunLoader)
    return made


def foreign(dataset: Counted) -> ForeignLoader:
    loader: Any = DataLoader(dataset, batch_size=4, sampler=RandomSampler(dataset))
    made = ForeignLoader(loader, 1, outside, Following(outside, Unseen(), list))
    made.kept = loader  # type: ignore[attr-defined]  (a script holds its loader)
    return made


@pytest.fixture
def followed() -> Iterator[None]:
    """As while a run is open."""
    every = EveryLoader(lambda: (0, 1), Following(outside, Unseen(), list).begin)
    every.install()
    yield
    every.remove()


@pytest.mark.usefixtures("followed")
@pytest.mark.parametrize("make", [ours, foreign])
def test_going_to_a_position_loads_nothing(make: Any) -> None:
    """From the middle of an epoch on, the items of the rest are loaded, in the same order, and no other."""
    torch.manual_seed(5)
    whole = Counted()
    loader = make(whole)
    batches = loader.iterate()
    for _ in range(150):
        next(batches)
    loader.commit()
    state = loader.state_dict()
    expected = [next(batches).tolist() for _ in range(3)]

    torch.manual_seed(6)
    rest = Counted()
    again = make(rest)
    again.load_state_dict(state)
    batches = again.iterate()
    assert [next(batches).tolist() for _ in range(3)] == expected
    assert rest.loaded == whole.loaded[600:612]


def test_torchdata_is_never_swapped_in() -> None:
    """A dataset with places is loaded by torch's own DataLoader, also where it has a state: torchdata's would shuffle
    in another order."""
    assert type(ours(Counted()).loader) is DataLoader


def be_a_worker() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # as in a worker that was spawned
    WorkerInit(lambda worker: print("worker", worker))(3)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        os.kill(os.getpid(), number)
    os._exit(7)


def test_workers_are_deaf_to_the_signals_of_the_run() -> None:
    """However a data worker was started, a stop signal to the whole process tree does not end it."""
    process = multiprocessing.get_context("fork").Process(target=be_a_worker)
    process.start()
    process.join()
    assert process.exitcode == 7
