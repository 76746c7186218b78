"""Iterable datasets: their states are tried before they are believed; loops over them are the script's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from autoresume import current
from autoresume.data.stream_state import Stateless, offers_state, try_state
from tests.data import loops
from tests.data.streams import Buffered, Honest, Late, Uncopied
from tests.data.test_following import differences


def test_a_state_is_tried() -> None:
    """A state that does not bring the same items back is found out, and what can't be tried is not called false. The
    dataset and the process's random numbers are as before."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    kinds: dict[type[Honest], bool | None] = {Honest: True, Buffered: False, Late: False, Uncopied: None}
    for kind, found in kinds.items():
        dataset = kind(200)
        assert try_state(dataset) is found
        assert dataset.place == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dataset_without_its_state() -> None:
    """Its items and its attributes are the same."""
    bare = Stateless(Honest(3))
    assert not offers_state(bare)
    assert bare.count == 3
    assert [item.tolist() for item in bare] == [[0.0], [1.0], [2.0]]


@pytest.mark.parametrize("kind", [Honest, Buffered, Uncopied])
@pytest.mark.parametrize("loop", ["for_each", "numbered_batches", "draws_before_it_fetches"])
def test_streams_of_our_loader(kind: type[Honest], loop: str, tmp_path: Path) -> None:
    """A stream goes on exactly, however often it is interrupted, whether its state is true or not; a state that is not
    is told, as is one that can't be tried. Undisturbed, the script draws the numbers that it drew with DataLoader."""

    def ours(count: int) -> DataLoader[torch.Tensor]:
        made: DataLoader[torch.Tensor] = current().loader(kind(count), batch_size=3)  # type: ignore[assignment]
        return made

    wanted = loops.plain(loop, lambda count: DataLoader(kind(count), batch_size=3), 13)
    for name, cuts in (("whole", {}), ("cut", {2: "TERM", 3: "TERM", 6: "CRASH", 11: "TERM"})):
        got = loops.interrupted(loop, ours, 13, tmp_path / name, cuts, 2)
        assert not differences(wanted, got.log), name
        assert any("does not bring the same items back" in line for line in got.told) == (kind is Buffered)
        assert any("at your risk" in line for line in got.told) == (kind is Uncopied)


class Drawing(IterableDataset[torch.Tensor]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(self.count):
            yield index + torch.rand(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_draws(workers: int, tmp_path: Path) -> None:
    """A stream of the script's own that draws from the process's generators can't be skipped through exactly: told in
    the first steps of the first life, with what to do. In workers it can."""

    def make(count: int) -> DataLoader[torch.Tensor]:
        return DataLoader(Drawing(count), batch_size=3, num_workers=workers)

    got = loops.interrupted("for_each", make, 13, tmp_path / "told", {}, 100)
    assert any("draws random numbers of this process" in line for line in got.told) == (workers == 0)
    if workers:
        wanted = loops.plain("for_each", make, 13)
        got = loops.interrupted("for_each", make, 13, tmp_path / "cut", {2: "TERM", 6: "TERM"}, 100)
        assert not differences(wanted, got.log)
