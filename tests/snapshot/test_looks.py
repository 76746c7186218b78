"""Promises of the looks at tensors that all ranks hold alike."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from autoresume.snapshot import looks
from autoresume.snapshot.looks import ALL, Look, Looks, Watch, fingerprints
from autoresume.state.capture import Leaf

SHAPES = [(), (1,), (7,), (300, 3), (2, 500), (1, 64), (40, 2, 2)]


def leaves_of(tensors: list[torch.Tensor]) -> list[Leaf]:
    return [
        Leaf(f"w{i}", one, str(one.dtype).removeprefix("torch."), tuple(one.shape), (0,) * one.dim(), True, True)
        for i, one in enumerate(tensors)
    ]


def some_tensors(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def look_at(tensors: list[torch.Tensor], turn: int) -> Look:
    made = Looks()
    looking = made.begin(Watch.of(leaves_of(tensors), []), turn, tensors)
    looking.copies.at_boundary()
    found = looking.conclude(memoryview(b""))
    looking.scratch.release()
    made.close()
    return found


@pytest.mark.parametrize("slice_bytes", [1, 100, 1000, 5000, 10**6])
def test_every_row_has_its_turn(slice_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the shapes, the slices of one rotation have each row once, and there are at most 64 of them."""
    monkeypatch.setattr(looks, "SLICE_BYTES", slice_bytes)
    monkeypatch.setattr(looks, "_SAMPLED_TENSORS", 0)
    watch = Watch.of(leaves_of(some_tensors()), [])
    assert watch.slices <= looks.MOST_SLICES
    for begin in (0, 5 * watch.slices):
        turns = range(begin, begin + watch.slices)
        seen = Counter(
            (one.key, row) for turn in turns for one, first, last in watch.rows_at(turn) for row in range(first, last)
        )
        assert seen == {(one.key, row): 1 for one in watch.watched for row in range(one.rows)}


def test_one_element_is_found_within_a_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single bit that differs between two ranks is seen in one turn of each rotation, or more."""
    monkeypatch.setattr(looks, "SLICE_BYTES", 500)
    ours, theirs = some_tensors(), some_tensors()
    slices = Watch.of(leaves_of(ours), []).slices
    assert slices > 10
    for index, tensor in enumerate(theirs):
        tensor.view(-1).view(torch.int32)[-1] ^= 1
        seen = [
            turn for turn in range(slices) if not look_at(ours, turn).replicas.agree(look_at(theirs, turn).replicas)
        ]
        assert seen, index
        assert len(seen) < slices or tensor.numel() < 100, "of a large one, not all is looked at each time"
        tensor.view(-1).view(torch.int32)[-1] ^= 1
    assert all(look_at(ours, turn).replicas.agree(look_at(theirs, turn).replicas) for turn in range(slices))


def test_samples_find_at_once_what_parts_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that differs in all its elements is seen whatever the turn is."""
    monkeypatch.setattr(looks, "SLICE_BYTES", 500)
    ours, theirs = some_tensors(), some_tensors()
    theirs[3] += 1
    for turn in range(100):
        assert not look_at(ours, turn).replicas.agree(look_at(theirs, turn).replicas)


def test_forms_that_differ_do_not_go_together() -> None:
    """Ranks that share other tensors than each other, or tensors of other types or shapes, at whatever turns."""
    ours = look_at(some_tensors(), 0).replicas
    for theirs in (
        some_tensors()[:-1],
        [one.double() for one in some_tensors()],
        [one[..., None] for one in some_tensors()],
    ):
        assert not ours.agree(look_at(theirs, 1).replicas)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.bool, torch.uint8, torch.int64]
)
def test_what_a_device_adds_up_shows_every_change(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums that a device makes of a tensor's words are the same for the same bytes, however they lie in memory, and
    others for any change of one element, or for two that changed places."""
    monkeypatch.setattr(looks, "_WEIGHED_WORDS", 16)
    for count in (1, 3, 8, 129, 1000):
        one = torch.arange(count + 1).remainder(2 if dtype == torch.bool else 97).to(dtype)
        moved = torch.cat((one[:1], one))[1:]
        before = looks._weigh(one)
        assert torch.equal(before, looks._weigh(moved))
        for place in (0, count // 2, count - 1):
            other = one.clone()
            other[place] = ~other[place] if dtype == torch.bool else other[place] + 1
            assert not torch.equal(before, looks._weigh(other))
        if count > 1:
            other = one.clone()
            other[[0, 1]] = other[[1, 0]]
            assert not torch.equal(before, looks._weigh(other))


def test_all_of_it_at_once() -> None:
    """Fingerprints of whole tensors: of one that is not contiguous as of its copy, and others for other bytes or types."""
    tensors = some_tensors()
    expected = fingerprints(leaves_of(tensors), 2)
    strided = [one.t().contiguous().t() if one.dim() == 2 else one.clone() for one in tensors]
    assert fingerprints(leaves_of(strided), 1) == expected
    assert fingerprints(leaves_of([one.int() for one in tensors]), 1).items().isdisjoint(expected.items())
    strided[3][299, 2] += 1
    found = fingerprints(leaves_of(strided), 2)
    assert {key for key in expected if expected[key] != found[key]} == {"w3"}
    watch = Watch.of(leaves_of(tensors), [])
    assert not Look.of(watch, ALL, expected).replicas.agree(Look.of(watch, ALL, found).replicas)
