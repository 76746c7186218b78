"""The commit under every order of operations that few context switches make, and under a crash at each of them.

The actors are the real functions: ranks that persist and commit, a process of a life that is over and does not know it,
and the next life, which claims the run, completes what was whole, and chooses.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest

from autoresume.checkpoint import commit, discover, fetch, incarnation, persist
from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.committed import prune_after_commit
from autoresume.checkpoint.discover import complete_commits, judge, list_checkpoints
from autoresume.checkpoint.retain import Keep
from autoresume.errors import CheckpointInvalid, StaleIncarnation, StorageFailed
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.load import candidates, read_checkpoint
from autoresume.ranks.agreement import Ranks
from tests.checkpoint.interleave import Inline, Late, Memory, Run, schedules
from tests.checkpoint.lives import FROZEN, RUN_ID, WORLD_SIZE, begin, name_of, newest_valid, snapshot

Actor = Callable[[], None]
STRIDE = 23
"""The suite tries one in so many schedules; all of them with TORTURE=full (`make torture`)."""
OLD, NEW = name_of(10, 1), name_of(20, 1)


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (commit, discover, fetch, persist):
        monkeypatch.setattr(module, "ThreadPoolExecutor", Inline)
    passed = [0.0]

    def sleep(seconds: float) -> None:
        passed[0] += seconds
        World.newest.wait()

    patient = SimpleNamespace(time=time.time, monotonic=lambda: passed[0], sleep=sleep)
    for module in (incarnation, read_checkpoint, candidates):
        monkeypatch.setattr(module, "time", patient)


class World:
    """A run with one committed checkpoint, of whose life two ranks are about to save the next. `looked` is what has held
    in every state that the storage was in."""

    newest: World

    def __init__(self) -> None:
        World.newest = self
        self.storage = Memory()
        self.late = [Late(self.storage) for _ in range(WORLD_SIZE)]
        """What the nodes of the ranks see of it."""
        self.number = begin(self.storage)
        guard = incarnation.guard(self.storage, self.number)
        for rank in range(WORLD_SIZE):
            persist.persist(self.storage, snapshot(OLD, rank, frozen=FROZEN), guard)
        commit_if_complete(self.storage, OLD, guard)
        self.chosen: list[tuple[CheckpointName | None, CheckpointName | None]] = []
        self.claimed: list[int] = []
        self.promised: set[str] = set()
        self.storage.look = self.look

    def look(self) -> None:
        """What must hold at every moment: what is committed is whole; something is, always; and what was committed goes
        only when something newer is there."""
        before, self.storage.before = self.storage.before, lambda verb: None
        try:
            committed = [name for name in list_checkpoints(self.storage) if name.manifest in self.storage.files]
            for name in committed:
                assert judge(self.storage, name, RUN_ID).problem is None, f"{name} is committed, and torn"
            assert committed, "nothing is committed any more"
            for gone in self.promised - {str(name) for name in committed}:
                parsed = CheckpointName.parse(gone)
                assert parsed is not None
                assert parsed < committed[0], f"{gone} was the newest, and is gone"
            self.promised |= {str(name) for name in committed}
        finally:
            self.storage.before = before

    def rank(self, rank: int, late: bool = False) -> Actor:
        """Saves as a daemon, or a thread, does it for a rank: persists, commits if all is there, prunes. A node that is
        `late` does not see what others have done since it looked."""
        storage = self.late[rank] if late else self.storage

        def act() -> None:
            guard = incarnation.guard(storage, self.number)
            with self.unless_over(self.number):
                persist.persist(storage, snapshot(NEW, rank, frozen=FROZEN), guard)
                if commit_if_complete(storage, NEW, guard, WORLD_SIZE) is not None:
                    prune_after_commit(storage, NEW, Keep(last=1), guard, False)

        return act

    @contextlib.contextmanager
    def unless_over(self, number: int) -> Iterator[None]:
        """A life that is over may find its folders gone; no other one may."""
        try:
            yield
        except (StaleIncarnation, CheckpointInvalid, StorageFailed):
            assert incarnation.numbers(self.storage)[-1] > number, "only a later life may collect what this one writes"

    def next_life(self) -> None:
        """Claims, completes what was written whole, chooses, and saves and commits once by itself."""
        storage = self.storage
        before = [name for name in list_checkpoints(storage) if storage.size(name.manifest) is not None]
        number = begin(storage)
        self.claimed.append(number)
        guard = incarnation.guard(storage, number)
        with self.unless_over(number):
            complete_commits(storage, guard)
            chosen = newest_valid(storage)
            if chosen is None:
                guard()
            self.chosen.append((before[0] if before else None, chosen))
            self._go_on(storage, number, chosen)

    def late_life(self, node: int) -> Actor:
        """The next life on a node that sees late: all that a start does, to the tensors."""
        storage = self.late[node]

        def act() -> None:
            before = [name for name in list_checkpoints(storage) if storage.size(name.manifest) is not None]
            number = begin(storage)
            self.claimed.append(number)
            with self.unless_over(number):
                found = read_checkpoint.choose_and_read(
                    storage, RUN_ID, Ranks(), incarnation.guard(storage, number), {}
                )
                chosen = found.manifest.checkpoint if found is not None else None
                self.chosen.append((before[0] if before else None, chosen))
                self._go_on(storage, number, chosen)

        return act

    def _go_on(self, storage: Memory | Late, number: int, chosen: CheckpointName | None) -> None:
        guard = incarnation.guard(storage, number)
        own = name_of((chosen.step if chosen else 0) + 10, number)
        for rank in range(WORLD_SIZE):
            persist.persist(storage, snapshot(own, rank, frozen=FROZEN), guard)
        if commit_if_complete(storage, own, guard, WORLD_SIZE) is not None:
            prune_after_commit(storage, own, Keep(last=1), guard, False)

    def wait(self) -> None:
        """Long enough for each node to see what there is."""
        for node in self.late:
            node.expire()


def explore(
    actors: Callable[[World], Sequence[Actor]],
    preemptions: int,
    crash: bool = False,
    finally_: Callable[[World, bool, object], None] | None = None,
) -> int:
    """Try all schedules; how many there were."""
    finally_ = finally_ or when_quiet
    count = len(actors(World()))
    lengths = {}
    for order in itertools.permutations(range(count)):
        world = World()
        lengths[order] = len(Run(world.storage, actors(world), next(schedules({order: 1}, count, 0, False))).trace)
    tried = 0
    stride = 1 if os.environ.get("TORTURE") == "full" else STRIDE
    for schedule in itertools.islice(schedules(lengths, count, preemptions, crash), 0, None, stride):
        world = World()
        run = Run(world.storage, actors(world), schedule)
        tried += 1
        assert not run.errors, (schedule, run.errors, run.trace)
        world.storage.look = lambda: None
        finally_(world, schedule.crash is not None, (schedule, run.trace))
    return tried


def when_quiet(world: World, crashed: bool, told: object) -> None:
    """When all is quiet: every choice was at least what was committed before; and whatever was written whole is committed,
    at the latest by the life after."""
    assert len(set(world.claimed)) == len(world.claimed), told
    for before, chosen in world.chosen:
        assert chosen is not None, told
        assert before is None or before <= chosen or chosen.incarnation > before.incarnation, told
    storage = world.storage
    if not crashed and not world.claimed:
        assert NEW.manifest in storage.files, ("nobody committed what all had written", told)
    guard = incarnation.guard(storage, begin(storage))
    complete_commits(storage, guard)
    chosen = newest_valid(storage)
    assert chosen is not None, told
    parts = {
        name
        for name in list_checkpoints(storage)
        if all(name.part(rank) in storage.files for rank in range(WORLD_SIZE))
    }
    assert all(name.manifest in storage.files for name in parts), told


def test_two_ranks_commit(record_property: Callable[[str, int], None]) -> None:
    """Whatever the order in which two ranks persist and look, at least one commits, and both may: with two preemptions."""
    record_property("torture interleavings", explore(lambda world: [world.rank(0), world.rank(1)], 2))


def test_a_rank_is_killed(record_property: Callable[[str, int], None]) -> None:
    """One of them is killed before any of its operations, with one preemption: the other, or the next life, commits what
    is whole, and nothing that is not."""
    record_property("torture interleavings", explore(lambda world: [world.rank(0), world.rank(1)], 1, crash=True))


def test_a_life_that_is_over_and_does_not_know_it(record_property: Callable[[str, int], None]) -> None:
    """A rank that was cut off goes on to save while the next life claims the run, chooses and saves: two preemptions."""

    def actors(world: World) -> Sequence[Actor]:
        world.rank(0)()  # has persisted, in peace
        return [world.rank(1), world.next_life]

    record_property("torture interleavings", explore(actors, 2))


def test_two_next_lives(record_property: Callable[[str, int], None]) -> None:
    """Two jobs that start on the run at once get different numbers, and the first of them stops when it sees the other."""

    def actors(world: World) -> Sequence[Actor]:
        world.rank(0)()
        world.rank(1)()
        return [world.next_life, world.next_life]

    record_property("torture interleavings", explore(actors, 1))


# -- what nodes see late ----------------------------------------------------------------------------------


def has_looked(world: World, node: int) -> None:
    """Another process of the node has looked just before, and found nothing of the checkpoint that is written now."""
    files = [NEW.manifest, *(NEW.part(rank) for rank in range(WORLD_SIZE))]
    world.late[node].look_around([names.CHECKPOINTS, names.INCARNATIONS, NEW.parts], files)


def test_two_nodes_that_see_each_other_late(record_property: Callable[[str, int], None]) -> None:
    """Neither may see the other's part, so that nobody commits at first: what is committed is whole all the same, and
    who waits for the commit, and asks again, commits it as soon as his node sees the parts."""

    def actors(world: World) -> Sequence[Actor]:
        for rank in range(WORLD_SIZE):
            has_looked(world, rank)
        return [world.rank(0, late=True), world.rank(1, late=True)]

    def finally_(world: World, crashed: bool, told: object) -> None:
        for node in world.late:
            node.expire()
            commit_if_complete(node, NEW, incarnation.guard(node, world.number), WORLD_SIZE)
        when_quiet(world, crashed, told)

    record_property("torture interleavings", explore(actors, 2, finally_=finally_))


@pytest.mark.parametrize("node", [0, 1])
def test_a_next_life_on_a_node_that_sees_late(node: int, record_property: Callable[[str, int], None]) -> None:
    """The next life starts, on the node of a rank that is over and does not know it or on the other one, which both have
    looked just before: it gets a number of its own, goes on from a committed checkpoint, never from scratch, and what it
    commits is whole."""

    def actors(world: World) -> Sequence[Actor]:
        world.rank(0)()
        for one in range(WORLD_SIZE):
            has_looked(world, one)
        return [world.rank(1, late=True), world.late_life(node)]

    def finally_(world: World, crashed: bool, told: object) -> None:
        world.wait()
        when_quiet(world, crashed, told)

    record_property("torture interleavings", explore(actors, 2, finally_=finally_))


def test_two_next_lives_on_nodes_that_see_late(record_property: Callable[[str, int], None]) -> None:
    """Neither sees that the other has claimed the run: they get different numbers, and one of both stops."""

    def actors(world: World) -> Sequence[Actor]:
        world.rank(0)()
        world.rank(1)()
        for one in range(WORLD_SIZE):
            has_looked(world, one)
        return [world.late_life(0), world.late_life(1)]

    def finally_(world: World, crashed: bool, told: object) -> None:
        world.wait()
        when_quiet(world, crashed, told)

    record_property("torture interleavings", explore(actors, 1, finally_=finally_))
