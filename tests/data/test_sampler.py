"""One global order for each epoch, whatever the number of ranks, from any position."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from autoresume.data.sampler import GlobalOrder, Sample

shared = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])

samples = st.integers(1, 60)
world_sizes = st.integers(1, 5)
batch_sizes = st.integers(1, 7)
epochs = st.integers(0, 3)


def ranks_of(
    count: int, batch_size: int, world_size: int, shuffle: bool = True, drop_last: bool = False, seed: int = 1
) -> list[GlobalOrder]:
    return [
        GlobalOrder(range(count), batch_size, rank, world_size, shuffle, drop_last, seed) for rank in range(world_size)
    ]


def batches(order: GlobalOrder, epoch: int = 0, position: int = 0) -> list[list[Sample]]:
    order.seek(epoch, position)
    return list(order)


def global_batches(ranks: list[GlobalOrder], epoch: int = 0, position: int = 0) -> list[list[Sample]]:
    """Each global batch: what all ranks together are given, in the order of ranks."""
    of_ranks = [batches(rank, epoch, position) for rank in ranks]
    return [[sample for batch in turn for sample in batch] for turn in zip(*of_ranks, strict=True)]


def path(order: GlobalOrder) -> list[int]:
    """The positions that a run comes to, from the beginning of an epoch to its end."""
    found = [0]
    while found[-1] < order.epoch_samples:
        found.append(order.after(found[-1]))
    return found


@shared
@given(samples, batch_sizes, world_sizes, st.booleans(), st.booleans(), epochs)
def test_every_sample_once_in_each_epoch(
    count: int, batch_size: int, world_size: int, shuffle: bool, drop_last: bool, epoch: int
) -> None:
    """Of all ranks together, each sample comes once; more only in the last batch, to make the ranks even, from the
    epoch's beginning; and less only with drop_last, by less than a global batch."""
    ranks = ranks_of(count, batch_size, world_size, shuffle, drop_last)
    order = ranks[0].order(epoch).tolist()
    found = global_batches(ranks, epoch)
    assert len(found) == len(ranks[0])
    seen = [sample.item for batch in found for sample in batch]
    proper = count - count % (batch_size * world_size) if drop_last else count
    assert seen[:proper] == order[:proper]
    filled_up = seen[proper:]
    assert len(filled_up) < world_size
    assert filled_up == (order * world_size)[: len(filled_up)]
    if drop_last:
        assert not filled_up
    assert sorted(order) == list(range(count))


@shared
@given(samples, batch_sizes, world_sizes, st.booleans(), st.booleans(), epochs, st.data())
def test_resuming_gives_exactly_the_rest(
    count: int, batch_size: int, world_size: int, shuffle: bool, drop_last: bool, epoch: int, data: st.DataObject
) -> None:
    """From any position that a run comes to, each rank is given just the batches that it would have been given."""
    ranks = ranks_of(count, batch_size, world_size, shuffle, drop_last)
    done = data.draw(st.integers(0, len(ranks[0])))
    position = path(ranks[0])[done]
    for rank in ranks:
        assert batches(rank, epoch, position) == batches(rank, epoch)[done:]


@shared
@given(samples, batch_sizes, world_sizes, st.booleans(), st.booleans())
def test_the_path_ends_with_the_epoch(
    count: int, batch_size: int, world_size: int, shuffle: bool, drop_last: bool
) -> None:
    """`after` leads from batch to batch; there are as many as `len` says; at the end nothing is left."""
    order = ranks_of(count, batch_size, world_size, shuffle, drop_last)[0]
    positions = path(order)
    assert len(positions) - 1 == len(order) == len(batches(order))
    assert positions[-1] == order.epoch_samples
    assert batches(order, 0, positions[-1]) == []
    assert [batch[0].position for batch in batches(order)] == positions[:-1]


@shared
@given(samples, batch_sizes, world_sizes, st.booleans(), st.booleans(), st.data())
def test_all_ranks_have_equally_much(
    count: int, batch_size: int, world_size: int, shuffle: bool, drop_last: bool, data: st.DataObject
) -> None:
    """At every turn each rank gets the same number of samples, at least one and at most a batch: nobody waits."""
    ranks = ranks_of(count, batch_size, world_size, shuffle, drop_last)
    position = data.draw(st.sampled_from(path(ranks[0])))
    sizes = [[len(batch) for batch in batches(rank, 0, position)] for rank in ranks]
    assert all(one == sizes[0] for one in sizes)
    assert all(1 <= size <= batch_size for size in sizes[0])
    assert all(size == batch_size for size in (sizes[0] if drop_last else sizes[0][:-1]))


@shared
@given(samples, st.integers(1, 12), st.booleans(), st.booleans(), epochs, st.data())
def test_the_number_of_ranks_does_not_matter(
    count: int, global_batch: int, shuffle: bool, drop_last: bool, epoch: int, data: st.DataObject
) -> None:
    """With the same global batch, any two world sizes train on the same samples at each step, from any position on.

    What fills the last batch up depends on the number of ranks, and on nothing else.
    """
    divisors = [world_size for world_size in range(1, global_batch + 1) if global_batch % world_size == 0]
    one, other = (
        ranks_of(count, global_batch // world_size, world_size, shuffle, drop_last)
        for world_size in (data.draw(st.sampled_from(divisors)), data.draw(st.sampled_from(divisors)))
    )
    assert path(one[0]) == path(other[0])
    position = data.draw(st.sampled_from(path(one[0])))
    left, right = global_batches(one, epoch, position), global_batches(other, epoch, position)
    assert len(left) == len(right)
    for turn, begin in enumerate(path(one[0])[path(one[0]).index(position) : -1]):
        proper = one[0].after(begin) - begin
        assert left[turn][:proper] == right[turn][:proper]
        assert [sample.position for sample in left[turn][:proper]] == list(range(begin, begin + proper))
    assert [len(batch) for batch in left[:-1]] == [global_batch] * len(left[:-1])


@shared
@given(st.integers(5, 60), st.lists(st.tuples(batch_sizes, world_sizes), min_size=1, max_size=5), st.data())
def test_changing_the_number_of_ranks_on_the_way(count: int, lives: list[tuple[int, int]], data: st.DataObject) -> None:
    """A run that goes on with other numbers of ranks, again and again, sees every sample of the epoch once."""
    position, seen = 0, Counter[int]()
    for batch_size, world_size in lives:
        ranks = ranks_of(count, batch_size, world_size)
        if position >= count:
            break
        turns = global_batches(ranks, 0, position)
        for turn in turns[: data.draw(st.integers(0, len(turns)))]:
            end = ranks[0].after(position)
            seen.update(sample.item for sample in turn[: end - position])
            position = end
    seen.update(sample.item for turn in global_batches(ranks_of(count, 4, 1), 0, position) for sample in turn)
    assert seen == Counter(range(count))


@shared
@given(samples, batch_sizes, world_sizes, st.data())
def test_drop_last_never_gives_a_short_batch(count: int, batch_size: int, world_size: int, data: st.DataObject) -> None:
    """Also from where a run with another number of ranks has come to: what makes no whole batch is left out."""
    before = ranks_of(count, data.draw(batch_sizes), data.draw(world_sizes), drop_last=True)[0]
    position = data.draw(st.sampled_from(path(before)))
    for rank in ranks_of(count, batch_size, world_size, drop_last=True):
        assert all(len(batch) == batch_size for batch in batches(rank, 0, position))


@shared
@given(samples, st.integers(0, 2**63), epochs, epochs)
def test_the_order_is_a_function_of_seed_and_epoch(count: int, seed: int, epoch: int, other: int) -> None:
    """The same seed and epoch give the same order in any process; another epoch or seed shuffles anew."""
    one, again = (ranks_of(count, 1, 1, seed=seed)[0] for _ in range(2))
    assert one.order(epoch).equal(again.order(epoch))
    assume(count > 20)
    assert one.order(epoch).equal(one.order(other)) == (epoch == other)
    assert not one.order(epoch).equal(ranks_of(count, 1, 1, seed=seed + 1)[0].order(epoch))


def test_the_order_is_the_same_in_every_version() -> None:
    """Pinned: an order that changed with a release would make every resumed epoch wrong."""
    assert ranks_of(10, 1, 1, seed=0)[0].order(0).tolist() == [7, 9, 0, 3, 2, 5, 8, 1, 4, 6]
    assert ranks_of(10, 1, 1, seed=0)[0].order(1).tolist() == [8, 1, 9, 3, 4, 7, 0, 6, 2, 5]


@shared
@given(samples, batch_sizes, world_sizes)
def test_without_shuffling_the_order_is_the_dataset_s(count: int, batch_size: int, world_size: int) -> None:
    """shuffle=False deals the dataset out from first to last, each rank a slice of each global batch."""
    ranks = ranks_of(count, batch_size, world_size, shuffle=False)
    items = [sample.item for batch in global_batches(ranks, 7) for sample in batch]
    assert items[:count] == list(range(count))


def test_seeking_later_does_not_move_an_iterator() -> None:
    """An iterator goes where it was told to when it was made, although somebody seeks before its first batch."""
    order = ranks_of(20, 2, 1, shuffle=False)[0]
    order.seek(0, 4)
    begun = iter(order)
    order.seek(3, 10)
    assert next(begun) == [Sample(0, 4, 4), Sample(0, 5, 5)]
    assert next(iter(order)) == [Sample(3, 10, 10), Sample(3, 11, 11)]


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_more_ranks_than_samples(world_size: int) -> None:
    """A dataset smaller than the number of ranks still gives each rank one sample."""
    ranks = ranks_of(2, 3, world_size, shuffle=False)
    assert [[len(batch) for batch in batches(rank)] for rank in ranks] == [[-(-2 // world_size)]] * world_size
