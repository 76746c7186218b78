"""Losing power at every moment of a run's saving, whatever the disk makes of what was not synced.

Every moment of it is tried in the suite, with a third of what a disk may make of it, another third at each; all of it
with TORTURE=full (`make torture`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autoresume.base import failpoints
from autoresume.checkpoint import discover, fetch, incarnation
from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.persist import persist
from autoresume.checkpoint.sidefiles import copy_into
from autoresume.format.names import CheckpointName
from autoresume.storage import LocalStorage
from tests.checkpoint import lives
from tests.checkpoint.interleave import Inline
from tests.storage.forgetful import STRICT, VARIANTS, Disk, ForgetfulStorage, UnsyncedStorage, Variant, put

PARTS = 1 if os.environ.get("TORTURE") == "full" else 3


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only reads a handful of small files, tens of thousands of times, starts no threads for it."""
    for module in (discover, fetch):
        monkeypatch.setattr(module, "ThreadPoolExecutor", Inline)


class PowerFailure(BaseException):
    """Nothing in the program may catch it."""


def live_until(
    storage: ForgetfulStorage, nth: int, saves: int, order: str
) -> tuple[str | None, list[CheckpointName], Disk]:
    """A life that loses power at the `nth` failpoint or sync: (where, the commits until then, the disk).

    None for where, if it was over before.
    """
    acknowledged: list[CheckpointName] = []
    reached = 0
    frozen: Disk | None = None

    def moment(name: str) -> None:
        nonlocal reached, frozen
        reached += 1
        if reached == nth:
            frozen = storage.freeze()
            raise PowerFailure(name)

    failpoints.set_observer(moment)
    storage.moment = moment
    where = None
    try:
        lives.live(storage, saves, acknowledged.append, order)
    except PowerFailure as failure:
        where = f"moment {nth}, {failure}"
    finally:
        failpoints.set_observer(None)
        storage.moment = None
    return where, acknowledged, frozen or storage.freeze()


class Aftermath:
    """Checks each different state that a disk may be found in, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[object] = set()
        self.checked = self.moments = 0

    def check(self, disk: Disk, acknowledged: list[CheckpointName], where: str | None) -> None:
        self.moments += 1
        new = 0
        for number, variant in enumerate(VARIANTS):
            if (number + self.moments) % PARTS:
                continue
            variant = replace(variant, seed=variant.seed + 100 * self.moments)  # other chances at each moment
            outcome = disk.outcome(variant)
            state = {(re.sub(r"\.[0-9a-f-]+\.tmp", ".tmp", name), content) for name, content in outcome.items()}
            key = (frozenset(state), tuple(acknowledged))
            if key in self.seen:
                continue
            self.seen.add(key)
            self.checked += 1
            new += 1
            print(f"power lost at {where}, then {variant}, in {self.folder / str(self.checked)}")  # shown on failure
            found = UnsyncedStorage(put(outcome, self.folder / str(self.checked)))
            lives.check(found, acknowledged)
            if new <= (2 if PARTS == 1 else 1):  # going on takes five times as long as looking
                lives.check_going_on(found, acknowledged)


@pytest.mark.parametrize("order", lives.ORDERS)
def test_power_is_lost_at_every_moment(memory: Path, order: str) -> None:
    """At every failpoint and before every sync: no commit is lost, nothing torn is judged valid, the run goes on."""
    aftermath = Aftermath(memory / "after")
    nth, where = 0, ""
    while where is not None:
        nth += 1
        with ForgetfulStorage(memory / f"{nth}-disk") as storage:
            where, acknowledged, disk = live_until(storage, nth, 3, order)
        aftermath.check(disk, acknowledged, where)
    assert nth > 120
    assert aftermath.checked > 300 / PARTS
    assert len(acknowledged) == (3 if order == "in turn" else 6)


@pytest.mark.parametrize("first", [STRICT, Variant("mixed", "kept", 5)], ids=str)
def test_power_is_lost_again_while_going_on(memory: Path, first: Variant) -> None:
    """The second life, which completes commits and collects garbage, may lose power at every moment, too."""
    with ForgetfulStorage(memory / "disk") as storage:
        nth = first_moment_before_the_third_commit(memory / "probe")
        _, acknowledged, disk = live_until(storage, nth, 3, "in turn")
    assert len(acknowledged) == 2
    aftermath = Aftermath(memory / "after")
    again, where = 0, ""
    while where is not None:
        again += 1
        with ForgetfulStorage(disk.rebuild(memory / f"{again}-disk", first)) as storage:
            where, more, second_disk = live_until(storage, again, 1, "in turn")
        aftermath.check(second_disk, acknowledged + more, where)
    assert again > 30


@pytest.mark.parametrize("completed_by", ["the rank that waited", "the next life"])
def test_a_rank_dies_and_then_power_is_lost(memory: Path, completed_by: str) -> None:
    """What a dead rank left is seen by those who live on, and may not be durable: a commit makes sure that it is.

    Rank 1 dies at every moment of its persisting. If its part can be seen, somebody else commits the
    checkpoint, and is told that it is durable. Then the power fails.
    """
    aftermath = Aftermath(memory / "after")
    nth, where = 0, ""
    while where is not None:
        nth += 1
        with ForgetfulStorage(memory / f"{nth}-disk") as storage:
            acknowledged: list[CheckpointName] = []
            lives.live(storage, 1, acknowledged.append)
            number = lives.begin(storage)
            guard = incarnation.guard(storage, number)
            name = lives.name_of(20, number)
            storage.write(lives.BEST, lives.best(20))
            files = copy_into(storage, name)
            storage.write(
                "metrics.jsonl", b"".join(b'{"step":%d,"time":1.0,"values":{}}\n' % step for step in range(1, 21))
            )
            persist(storage, lives.snapshot(name, 0, files=files, frozen=lives.FROZEN), guard)
            where = dies_at(storage, nth, lambda: persist(storage, lives.snapshot(name, 1, frozen=lives.FROZEN), guard))
            if completed_by == "the next life":
                lives.live(storage, 0, acknowledged.append)
            elif commit_if_complete(storage, name, guard, lives.WORLD_SIZE) is not None:
                acknowledged.append(name)
            disk = storage.freeze()
        aftermath.check(disk, acknowledged, where)
    assert nth > 15
    assert acknowledged[-1] == name


def dies_at(storage: ForgetfulStorage, nth: int, work: Callable[[], object]) -> str | None:
    """Do the work of a process that is killed at its `nth` failpoint or sync; where that was, or None."""
    reached = 0

    def moment(name: str) -> None:
        nonlocal reached
        reached += 1
        if reached == nth:
            raise PowerFailure(f"moment {nth}, {name}")

    failpoints.set_observer(moment)
    storage.moment = moment
    try:
        work()
    except PowerFailure as failure:
        return str(failure)
    finally:
        failpoints.set_observer(None)
        storage.moment = None
    return None


def first_moment_before_the_third_commit(folder: Path) -> int:
    """The number of the moment at which the third checkpoint has all its parts and no manifest."""
    count = commits = found = 0
    with ForgetfulStorage(folder) as storage:

        def moment(name: str) -> None:
            nonlocal count, commits, found
            count += 1
            if name == "commit.before_manifest":
                commits += 1
                if commits == 3:
                    found = count

        failpoints.set_observer(moment)
        storage.moment = moment
        try:
            lives.live(storage, 3, lambda name: None)
        finally:
            failpoints.set_observer(None)
    return found


class Forgoing(ForgetfulStorage):
    """A storage with one of the steps of a durable write left out."""

    def __init__(self, root: Path, forgone: str) -> None:
        super().__init__(root)
        self.forgone = forgone

    def _sync_file(self, descriptor: int, path: Path) -> None:
        if self.forgone != "sync of files":
            super()._sync_file(descriptor, path)

    def _sync_folder(self, folder: Path) -> None:
        if self.forgone != "sync of folders":
            super()._sync_folder(folder)


@pytest.mark.parametrize("forgone", ["sync of files", "sync of folders"])
def test_the_test_sees_what_is_forgone(memory: Path, forgone: str) -> None:
    """Without one of the syncs some moment and some variant lose a commit: what is checked here can fail."""
    losses = 0
    for nth in range(1, 160, 9):
        with Forgoing(memory / f"{nth}-disk", forgone) as storage:
            _, acknowledged, disk = live_until(storage, nth, 3, "in turn")
        for number, variant in enumerate(VARIANTS):
            found = UnsyncedStorage(disk.rebuild(memory / f"{nth}-{number}", variant))
            try:
                lives.check(found, acknowledged)
            except AssertionError:
                losses += 1
    assert losses > 0


def test_without_a_crash_all_is_as_it_should_be(tmp_path: Path) -> None:
    """The run that the other tests interrupt keeps the last two checkpoints, and each is whole."""
    storage: LocalStorage = UnsyncedStorage(tmp_path)
    told: list[CheckpointName] = []
    lives.live(storage, 4, told.append)
    assert told == [lives.name_of(step, 1) for step in (10, 20, 30, 40)]
    assert storage.list("checkpoints") == [str(name) for name in told[2:]]
    lives.check(storage, told)
