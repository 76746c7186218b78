"""The fence: all ranks act at the very same steps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoresume.errors import AgreementError
from autoresume.handoff import fence as fence_module
from autoresume.handoff.fence import DaemonFence, Order, Phase, RankFence
from autoresume.run import orders as orders_module
from tests.handoff.schedule import Schedule, Stuck, attach
from tests.node.harness import wait_until

Pair = tuple[DaemonFence, list[RankFence]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[int], Pair]]:
    made: list[DaemonFence | RankFence] = []

    def build(ranks: int) -> Pair:
        path = tmp_path / f"fence{len(made)}"
        daemon = DaemonFence(path, ranks)
        sides = [RankFence(path, rank) for rank in range(ranks)]
        made.extend([daemon, *sides])
        return daemon, sides

    yield build
    for side in made:
        side.close()


# -- one order --------------------------------------------------------------------------------------


def test_an_order_is_obeyed_at_its_step_alone(make: Callable[[int], Pair]) -> None:
    """A rank is told the order at the step that was fixed: not before, not after, and once."""
    daemon, (rank,) = make(1)
    assert rank.at_boundary(6) is Order.NOTHING
    assert daemon.propose(2, Order.SAVE) == 8
    assert [rank.at_boundary(step) for step in (7, 8, 8, 9)] == [
        Order.NOTHING,
        Order.SAVE,
        Order.NOTHING,
        Order.NOTHING,
    ]


def test_a_step_is_ahead_of_the_fastest_rank(make: Callable[[int], Pair]) -> None:
    """The order's step lies ahead of every rank, and each is told at that step whenever it comes there."""
    daemon, (fast, slow) = make(2)
    fast.at_boundary(11)
    slow.at_boundary(3)
    assert daemon.propose(1, Order.STOP) == 12
    assert fast.at_boundary(12) is Order.STOP
    assert [slow.at_boundary(step) for step in range(4, 13)] == [Order.NOTHING] * 8 + [Order.STOP]


def test_nothing_is_proposed_before_all_have_reached_a_boundary(make: Callable[[int], Pair]) -> None:
    """As long as a rank is on its way to its first boundary nobody knows what is ahead of it."""
    daemon, (early, late) = make(2)
    assert daemon.propose(1, Order.STOP) is None
    early.at_boundary(1)
    assert daemon.steps() == [1, None]
    assert daemon.propose(1, Order.STOP) is None
    late.at_boundary(1)
    assert daemon.propose(1, Order.STOP) == 2


def test_step_zero_is_a_boundary(make: Callable[[int], Pair]) -> None:
    """A rank that stands at step 0 has reached a boundary."""
    daemon, (rank,) = make(1)
    rank.at_boundary(0)
    assert daemon.steps() == [0]
    assert daemon.propose(1, Order.SAVE) == 1


def test_a_rank_that_is_faster_than_the_proposal_refuses_it(
    make: Callable[[int], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a rank reaches the proposed step before it is confirmed, the proposal is withdrawn, and nobody acts on it."""
    daemon, (fast, slow) = make(2)
    fast.at_boundary(4)
    slow.at_boundary(4)
    monkeypatch.setattr(fence_module, "barrier", lambda: fast.publish(5))
    assert daemon.propose(1, Order.STOP) is None
    monkeypatch.undo()
    assert (fast.at_boundary(5), slow.at_boundary(5)) == (Order.NOTHING, Order.NOTHING)
    assert daemon.propose(1, Order.STOP) == 6
    assert (fast.at_boundary(6), slow.at_boundary(6)) == (Order.STOP, Order.STOP)


def test_what_is_withdrawn_is_never_done(make: Callable[[int], Pair]) -> None:
    """After the daemon withdrew an order its step is a step like any other."""
    daemon, (rank,) = make(1)
    rank.at_boundary(1)
    assert daemon.offer(2, Order.STOP)
    daemon.withdraw()
    assert rank.at_boundary(2) is Order.NOTHING
    assert rank.after_loop(0) is Order.NOTHING


def test_what_is_confirmed_can_not_be_withdrawn(make: Callable[[int], Pair]) -> None:
    """A rank may have acted on it already: then all do."""
    daemon, (fast, slow) = make(2)
    fast.at_boundary(1)
    slow.at_boundary(1)
    assert daemon.propose(1, Order.SAVE) == 2
    assert fast.at_boundary(2) is Order.SAVE
    daemon.withdraw()
    assert slow.at_boundary(2) is Order.SAVE


def test_nothing_is_offered_once_the_fence_is_shut(make: Callable[[int], Pair]) -> None:
    """Ranks that see it shut end: nobody would obey."""
    daemon, (rank,) = make(1)
    rank.publish(1, Phase.LEFT)
    assert not rank.closed()
    daemon.shut()
    assert rank.closed()
    assert not daemon.offer(2, Order.SAVE)


def test_a_daemon_that_died_while_it_proposed_holds_nobody_up_for_ever(tmp_path: Path) -> None:
    """A rank waits at a proposed step as long as the daemon lives, be it ever so slow, and no longer."""
    daemon, answers = DaemonFence(tmp_path / "fence", 1), iter([True, True, False])
    rank = RankFence(tmp_path / "fence", 0, lambda: next(answers))
    rank.at_boundary(1)
    assert daemon.offer(2, Order.STOP)
    with pytest.raises(AgreementError, match="died while it had all ranks stop at step 2"):
        rank.at_boundary(2)
    assert list(answers) == []
    rank.close()
    daemon.close()


def test_new_ranks_begin_with_a_clean_fence(make: Callable[[int], Pair]) -> None:
    """After a restart in place nothing of the old ranks' orders, steps, phases and wishes is left."""
    daemon, (rank, other) = make(2)
    rank.at_boundary(1)
    other.publish(1, Phase.LEFT)
    rank.request(Order.STOP)
    daemon.propose(1, Order.STOP)
    daemon.reset()
    assert (daemon.steps(), daemon.requests()) == ([None, None], Order.NOTHING)
    assert daemon.phases() == [Phase.STARTING] * 2
    assert rank.at_boundary(2) is Order.NOTHING


def test_the_strongest_wish_counts(make: Callable[[int], Pair]) -> None:
    """Wishes of several ranks are one, the strongest; a weaker one does not replace it; forgotten ones are gone."""
    daemon, (one, two) = make(2)
    one.request(Order.SAVE)
    two.request(Order.STOP)
    two.request(Order.SAVE)
    assert daemon.requests() is Order.STOP
    daemon.clear_requests()
    assert daemon.requests() is Order.NOTHING


def test_an_obeyed_order_takes_its_wish_with_it(make: Callable[[int], Pair]) -> None:
    """A rank wishes for a save until it gets one: what it wished for on the way is not a second save.

    A stop that it wishes for meanwhile is another matter: a save does not answer it.
    """
    daemon, (rank,) = make(1)
    rank.at_boundary(1)
    assert daemon.propose(1, Order.SAVE) == 2
    rank.request(Order.SAVE)
    assert rank.at_boundary(2) is Order.SAVE
    assert daemon.requests() is Order.NOTHING
    assert daemon.propose(1, Order.SAVE) == 3
    rank.request(Order.STOP)
    assert rank.at_boundary(3) is Order.SAVE
    assert daemon.requests() is Order.STOP


def test_ranks_see_the_daemons_heart(make: Callable[[int], Pair]) -> None:
    """Each beat is newer than the one before."""
    daemon, (rank,) = make(1)
    daemon.beat()
    first = rank.daemon_beat()
    daemon.beat()
    assert rank.daemon_beat() > first > 0


# -- ranks that leave -------------------------------------------------------------------------------


def test_a_rank_at_rest_obeys_what_the_others_reach_later(make: Callable[[int], Pair]) -> None:
    """A rank that left its loop early takes part in the others' save, and is waited for by nobody."""
    daemon, (early, late) = make(2)
    early.publish(3, Phase.LEFT)
    late.at_boundary(7)
    assert not daemon.all_left()
    assert daemon.propose(1, Order.SAVE) == 8
    assert early.target() == 8
    assert (early.after_loop(3), early.after_loop(3)) == (Order.SAVE, Order.NOTHING)
    assert late.at_boundary(8) is Order.SAVE
    late.publish(8, Phase.LEFT)
    assert daemon.all_left()


def test_a_rank_that_passed_the_step_and_left_refuses_it(
    make: Callable[[int], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that trains past the proposed step and leaves before the daemon looks has not seen it: it is refused.

    Otherwise the last step of a run is stopped at by some of its ranks, and the others wait for them.
    """
    daemon, (fast, slow) = make(2)
    fast.at_boundary(4)
    slow.at_boundary(4)

    def meanwhile() -> None:
        fast.publish(5, Phase.LEFT)

    monkeypatch.setattr(fence_module, "barrier", meanwhile)
    target = daemon.propose(1, Order.STOP)
    monkeypatch.undo()
    told = (fast.after_loop(5), slow.at_boundary(5))
    assert told == (Order.NOTHING, Order.NOTHING), f"at {target} the ranks were told {told}"


def test_an_order_lies_ahead_of_ranks_that_have_left(make: Callable[[int], Pair]) -> None:
    """Where one rank has left after step 5 and another is still to reach it, both obey one order."""
    daemon, (early, late) = make(2)
    early.at_boundary(5)
    early.publish(5, Phase.LEFT)
    late.at_boundary(4)
    target = daemon.propose(1, Order.STOP)
    assert target is not None
    later = [late.at_boundary(step) for step in range(5, target + 1)]
    assert (early.after_loop(5), later[-1]) == (Order.STOP, Order.STOP)


# -- several orders ---------------------------------------------------------------------------------


def test_a_new_order_does_not_erase_one_that_a_slower_rank_is_still_to_obey(make: Callable[[int], Pair]) -> None:
    """A save that one rank has taken is taken by all, also when a stop is wanted meanwhile.

    Otherwise the first rank waits in the save's agreement for one that never comes.
    """
    daemon, (fast, slow) = make(2)
    fast.at_boundary(4)
    slow.at_boundary(4)
    assert daemon.propose(1, Order.SAVE) == 5
    assert fast.at_boundary(5) is Order.SAVE
    daemon.propose(1, Order.STOP)
    assert slow.at_boundary(5) is Order.SAVE


# -- the real code under every kind of schedule ------------------------------------------------------


def play(
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    ranks: int,
    steps: int | None,
    orders: list[Order],
    barrier: bool = True,
) -> list[list[tuple[int, Order]]]:
    """What each rank did, and at which step. Without `steps` the ranks train until they are stopped."""
    schedule = Schedule(seed, fence_module._HEADER_WORDS + fence_module._WORDS_PER_RANK * ranks)
    monkeypatch.setattr(fence_module, "barrier", schedule.barrier if barrier else schedule.no_barrier)
    monkeypatch.setattr(fence_module, "time", schedule.clock)
    monkeypatch.setattr(orders_module, "time", schedule.clock)
    path = tmp_path / f"fence-{seed}"
    daemon = attach(DaemonFence(path, ranks), schedule)
    acted: list[list[tuple[int, Order]]] = [[] for _ in range(ranks)]

    def order_about() -> None:
        for order in orders:
            ahead, target = 1, None
            while target is None:
                phases = daemon.phases()
                if all(phase is Phase.LEFT for phase in phases) or finished == ranks:
                    break
                if all(step is not None or phase is Phase.LEFT for step, phase in zip(daemon.steps(), phases)):
                    target = daemon.propose(ahead, order)
                    ahead = min(64, ahead * 2)
        while finished < ranks:
            if daemon.all_left() and daemon.settled():
                daemon.shut()

    def train(rank: int) -> None:
        nonlocal finished
        side = attach(RankFence(path, rank), schedule)
        try:
            step = 0
            while steps is None or step < steps:
                step += 1
                if note(rank, side.at_boundary(step), step) is Order.STOP:
                    return
            while True:
                order, where = orders_module.wait_at_fence(side, lambda: True, step)
                if note(rank, order, where) in (Order.STOP, Order.NOTHING):
                    return
        finally:
            finished += 1

    def note(rank: int, order: Order, step: int) -> Order:
        if order:
            acted[rank].append((step, order))
        return order

    finished = 0
    schedule.add("daemon", order_about)
    for rank in range(ranks):
        schedule.add(f"rank {rank}", lambda rank=rank: train(rank))
    schedule.run()
    monkeypatch.undo()
    path.unlink()
    return acted


def differing(acted: list[list[tuple[int, Order]]]) -> bool:
    return any(one != acted[0] for one in acted)


def test_all_ranks_stop_at_one_step_however_they_are_interleaved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of ranks that train, in 120 schedules of single memory accesses with store buffers, all stop at one step."""
    for seed in range(120):
        acted = play(seed, monkeypatch, tmp_path, ranks=2 + seed % 2, steps=None, orders=[Order.STOP])
        assert not differing(acted), f"seed {seed}: {acted}"
        assert len(acted[0]) == 1


def test_without_the_barrier_they_would_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same schedules find a rank that passes the step where another one stops, once the barrier does nothing."""
    found = None
    for seed in range(300):
        try:
            play(seed, monkeypatch, tmp_path, ranks=2, steps=None, orders=[Order.STOP], barrier=False)
        except Stuck:
            found = seed
            break
    assert found is not None


def test_ranks_that_come_to_their_end_meanwhile_do_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether a save or stop comes before, at or after the last step: either all ranks obey it, or none."""
    for seed in range(150):
        order = [Order.SAVE, Order.STOP][seed % 2]
        acted = play(seed, monkeypatch, tmp_path, ranks=2, steps=3, orders=[order])
        assert not differing(acted), f"seed {seed}: {acted}"


def test_every_order_of_several_is_obeyed_by_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Saves that are wanted one right after the other, and a stop after them: all ranks do all of them."""
    for seed in range(60):
        orders = [Order.SAVE, Order.SAVE, Order.STOP]
        acted = play(seed, monkeypatch, tmp_path, ranks=2, steps=None, orders=orders)
        assert not differing(acted), f"seed {seed}: {acted}"
        assert [order for _, order in acted[0]] == orders


# -- real processes ---------------------------------------------------------------------------------


def test_real_ranks_act_at_the_very_same_steps(tmp_path: Path) -> None:
    """Three processes step as fast as they can; each of 15 saves, and the stop, is done by all at its step."""
    path = tmp_path / "fence"
    daemon = DaemonFence(path, 3)
    logs = [tmp_path / f"log-{rank}" for rank in range(3)]
    progress = tmp_path / "progress"
    progress.write_bytes(bytes(3 * 8))
    script = str(Path(__file__).with_name("stepper.py"))
    ranks = [
        subprocess.Popen([sys.executable, script, path, str(rank), progress, log]) for rank, log in enumerate(logs)
    ]
    try:
        wait_until(lambda: None not in daemon.steps(), what="the ranks to step")
        ordered, ahead = [], 64
        for order in [*[Order.SAVE] * 15, Order.STOP]:
            ahead = max(64, ahead // 4)
            while (target := daemon.propose(ahead, order)) is None:
                ahead *= 2
            ordered.append([target, order.name])
            if order is Order.SAVE:
                wait_until(
                    lambda target=target: min(step or 0 for step in daemon.steps()) > target, what="all to pass it"
                )
        assert [rank.wait(20) for rank in ranks] == [0, 0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        daemon.close()
    assert [json.loads(log.read_text()) for log in logs] == [ordered] * 3
