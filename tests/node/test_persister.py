"""The persister: every sealed message comes to its end, and is told of."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoresume.checkpoint.discover import judge, list_checkpoints
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.checkpoint.persist import Snapshot
from autoresume.format.digest import canonical
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk, chunks_json
from autoresume.format.tensorfile import Entry, lay_out
from autoresume.handoff import kept_snapshots
from autoresume.handoff.arena import Arena
from autoresume.handoff.mailbox import Mailbox
from autoresume.node.persister import Persister
from autoresume.snapshot.sinks import DaemonSink, Sealed
from autoresume.storage.local import LocalStorage
from tests.node.harness import make_run, wait_until


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return make_run(tmp_path / "run")


@pytest.fixture
def mailbox(memory: Path) -> Mailbox:
    return Mailbox(memory)


@pytest.fixture
def persister(mailbox: Mailbox) -> Iterator[Persister]:
    made = Persister(mailbox, 2)
    yield made
    made.close()


def sink(mailbox: Mailbox, storage: LocalStorage) -> DaemonSink:
    return DaemonSink(mailbox, storage.root, (1, 0.0), lambda *_: True)


def seal(to: DaemonSink, mailbox: Mailbox, step: int, rank: int = 0, world_size: int = 1) -> Arena:
    """Seal a snapshot as a rank does."""
    layout = lay_out([Entry("w", "uint8", (5000,))], {})
    arena = Arena(layout.size, mailbox.folder / f"arena-{rank:05d}-{step}")
    image = arena.view(layout.size)
    image[: len(layout.header)] = layout.header
    image[len(layout.header) :] = bytes([step % 251]) * 5000
    snapshot = Snapshot(
        run_id="fa4e4a4c0001",
        checkpoint=CheckpointName(step=step, incarnation=1, epoch=0, samples=step),
        rank=rank,
        world_size=world_size,
        time=1000.0 + step,
        image=image,
        chunks=chunks_json([Chunk("w", "uint8", (5000,), (0,), (5000,), False, layout.begins[0])]),
        tree=canonical({"step": step}),
        about={},
        attachments={"env": (f"pickles/rank-{rank:05d}-env.pkl", b"attached")},
    )
    to.submit(Sealed(snapshot, arena))
    return arena


def test_a_sealed_snapshot_becomes_a_checkpoint(mailbox: Mailbox, storage: LocalStorage, persister: Persister) -> None:
    """When `drain` returns it is committed, its arena is free, its rank is told, and its message and blobs are gone.

    Until the arena is used again there is word of what it holds, for ranks that come after a death.
    """
    to = sink(mailbox, storage)
    arena = seal(to, mailbox, 7)
    assert to.busy(arena)
    persister.drain()
    (name,) = list_checkpoints(storage)
    assert judge(storage, name, "fa4e4a4c0001").problem is None
    assert storage.read(name.shard(0)).endswith(bytes([7]) * 5000)
    assert not to.busy(arena)
    (outcome,) = to.outcomes()
    assert (outcome.checkpoint, outcome.committed, outcome.problem) == (str(name), True, None)
    assert (outcome.bytes, to.outcomes()) == (arena_bytes(storage, name) + len(b"attached"), [])
    left = sorted(path.name for path in mailbox.folder.iterdir())
    assert left == ["arena-00000-7", "kept-arena-00000-7.json", f"outcome-{name}-00000.json"]
    size = arena_bytes(storage, name)
    (path,) = kept_snapshots.kept_images(mailbox, str(name)).values()
    assert path.read_bytes()[:size] == storage.read(name.shard(0))
    assert kept_snapshots.kept_images(mailbox, str(name)) == {(0, size): path}
    to.forget(arena)
    assert kept_snapshots.kept_images(mailbox, str(name)) == {}


def arena_bytes(storage: LocalStorage, name: CheckpointName) -> int:
    found = storage.size(name.shard(0))
    assert found is not None
    return found


def test_nothing_is_committed_before_all_ranks_sealed(
    mailbox: Mailbox, storage: LocalStorage, persister: Persister
) -> None:
    """A checkpoint of two ranks exists when both parts are there, whoever comes last."""
    to = sink(mailbox, storage)
    seal(to, mailbox, 7, rank=1, world_size=2)
    persister.drain()
    (name,) = list_checkpoints(storage)
    assert not judge(storage, name).committed
    assert [outcome.committed for outcome in to.outcomes()] == [False]
    seal(to, mailbox, 7, rank=0, world_size=2)
    persister.drain()
    assert judge(storage, name).problem is None
    assert [outcome.committed for outcome in to.outcomes()] == [True]


def test_looking_does_not_wait(mailbox: Mailbox, storage: LocalStorage, persister: Persister) -> None:
    """`look` only begins; a message is handled once, however often one looks."""
    to = sink(mailbox, storage)
    arena = seal(to, mailbox, 7)

    def done() -> bool:
        persister.start_new()
        return not to.busy(arena)

    wait_until(done)
    assert [outcome.committed for outcome in to.outcomes()] == [True]


def test_a_dead_life_writes_nothing(
    mailbox: Mailbox, storage: LocalStorage, persister: Persister, caplog: pytest.LogCaptureFixture
) -> None:
    """A snapshot of a life that is over is given up; its rank is told that it was taken over."""
    claimed = Incarnation(2, "fa4e4a4c0001", "there", "b", [(1, 0.0)], 1, [])
    storage.create("incarnations/0002.json", claimed.to_bytes())
    to = sink(mailbox, storage)
    arena = seal(to, mailbox, 7)
    with caplog.at_level(logging.WARNING, "autoresume"):
        persister.drain()
    (outcome,) = to.outcomes()
    assert outcome.problem is not None
    assert outcome.problem.startswith("StaleIncarnation: incarnation 2 has taken over")
    assert (list_checkpoints(storage), to.busy(arena)) == ([], False)


def test_a_full_disk_is_told_and_nothing_is_lost(
    mailbox: Mailbox, storage: LocalStorage, persister: Persister, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without space the older checkpoint stays, the rank is told why, and the next snapshot is taken as usual."""
    to = sink(mailbox, storage)
    seal(to, mailbox, 7)
    persister.drain()
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda self: 10)
    seal(to, mailbox, 8)
    persister.drain()
    monkeypatch.undo()
    seal(to, mailbox, 9)
    persister.drain()
    assert [name.step for name in list_checkpoints(storage)] == [9, 7]
    problems = [outcome.problem for outcome in to.outcomes() if outcome.problem]
    assert len(problems) == 1
    assert problems[0].startswith("StorageFull: checkpoint E0_U8_S8-0001 needs")


@pytest.mark.parametrize(
    "broken",
    [
        {"checkpoint": "no name at all"},
        {"arena": "arena-that-is-gone"},
        {"chunks": [{"key": "w"}]},
        {"attachments": {"env": ["pickles/x.pkl", "blob-that-is-gone"]}},
        {"attachments": None},
        {"checkpoint": None},
        {"rank": None},
    ],
    ids=str,
)
def test_a_message_that_cant_be_handled_is_not_handled_for_ever(
    mailbox: Mailbox, storage: LocalStorage, persister: Persister, broken: dict[str, Any]
) -> None:
    """It is given up, with its reason told, and the next one is handled; `drain` neither raises nor hangs."""
    to = sink(mailbox, storage)
    arena = seal(to, mailbox, 7)
    (message,) = mailbox.names("sealed-")
    content = mailbox.receive(message)
    assert content is not None
    mailbox.send(message, {**content, **broken})
    persister.drain()
    assert mailbox.names("sealed-") == []
    assert not to.busy(arena)
    seal(to, mailbox, 8)
    persister.drain()
    assert [name.step for name in list_checkpoints(storage) if judge(storage, name).committed] == [8]


def test_outcomes_do_not_fill_the_memory(mailbox: Mailbox, storage: LocalStorage, persister: Persister) -> None:
    """Of a long run only the last outcomes stay in the mailbox."""
    to = sink(mailbox, storage)
    for step in range(1, 71):
        arena = seal(to, mailbox, step)
        persister.drain()
        arena.close(unlink=True)
    assert len(mailbox.names("outcome-")) == 64
    assert len(to.outcomes()) == 64
    assert [name.step for name in list_checkpoints(storage)] == [70, 69, 68]
