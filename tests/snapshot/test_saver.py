"""Promises of snapshots that are taken while training goes on."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from autoresume.base import failpoints
from autoresume.checkpoint.retain import Keep
from autoresume.format.names import CheckpointName
from autoresume.load.read_checkpoint import choose_and_read
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot import copies, devices
from autoresume.snapshot.saver import Saver
from autoresume.snapshot.sinks import ThreadSink
from autoresume.storage import LocalStorage

NOTHING: frozenset[Any] = frozenset()


class Training:
    """A model whose tensors are large enough to be copied late, its optimizer, and a saver of both."""

    def __init__(self, storage: LocalStorage) -> None:
        torch.manual_seed(0)
        self.storage = storage
        self.model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.BatchNorm1d(100), torch.nn.Linear(100, 80))
        self.average = torch.nn.Linear(100, 100)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        sink = ThreadSink(storage, Keep(10), lambda: None)
        self.saver = Saver("run", Ranks(), sink, None, lambda: sink)
        self.steps = 0

    @property
    def objects(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "average": self.average}

    def forward(self) -> torch.Tensor:
        return self.model(torch.randn(10, 100)).square().mean()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.forward().backward()
        self.optimizer.step()
        with torch.no_grad():
            self.average.weight.lerp_(self.model[0].weight, 0.1)
        self.steps += 1
        self.saver.at_boundary()

    def save(self, urgent: bool = False) -> dict[str, Any]:
        """Save, and what a checkpoint of this moment has to hold."""
        expected = {name: _copy(value.state_dict()) for name, value in self.objects.items()}
        name = CheckpointName(step=self.steps, incarnation=1, epoch=0, samples=0)
        self.saver.save(name, self.objects, NOTHING, {}, urgent=urgent)
        return expected

    def stored(self) -> dict[str, Any]:
        """The newest checkpoint's state."""
        self.saver.finish_handover()
        self.saver.sink.close()
        restored = choose_and_read(self.storage, "run", Ranks(), lambda: None, {})
        assert restored is not None
        assert restored.manifest.checkpoint.step == self.steps or self.saver.torn
        return restored.states


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    made = Training(LocalStorage(tmp_path))
    yield made
    made.saver.close()


class Held:
    """Keeps copies in the background from beginning, until the main thread joins them or `let_go` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        main, work = threading.main_thread(), copies.Copying._work

        def slow(copying: copies.Copying) -> None:
            if threading.current_thread() is not main:
                self.go.wait(60)
            work(copying)

        monkeypatch.setattr(copies.Copying, "_work", slow)

    def let_go(self) -> None:
        self.go.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(monkeypatch)
    yield made
    made.let_go()


def test_a_snapshot_is_of_its_boundary_whatever_training_does_next(training: Training, held: Held) -> None:
    """Forward and backward go on while parameters are copied; the next optimizer step waits for the copy. What a forward
    pass changes (statistics) and what no optimizer owns (an average) is copied at the boundary."""
    for _ in range(3):
        training.step()
        expected = training.save()
        assert training.saver._pending is not None, "nothing is overlapped"
        training.step()
        held.let_go()
        training.steps -= 1
        assert_equal(training.stored(), expected)
        training.saver.sink = ThreadSink(training.storage, Keep(10), lambda: None)
        training.steps += 1
        held.go.clear()


def test_the_copy_is_really_late(training: Training, held: Held, tmp_path: Path) -> None:
    """At the boundary most of the state is not copied yet: that is what makes the stall short."""
    training.step()
    training.save()
    pending = training.saver._pending
    assert pending is not None
    late = sum(size for _, _, size in pending.begun.copying._left)
    assert late > 0.8 * 3 * sum(p.numel() * 4 for p in training.model.parameters())


def _through_data(training: Training) -> None:
    for parameter in training.model.parameters():
        parameter.data.mul_(2)


def _a_row_through_data(training: Training) -> None:
    training.model[0].weight.data[0] = 7.0


def _other_data(training: Training) -> None:
    training.model[0].weight.data = torch.zeros_like(training.model[0].weight)


@pytest.mark.parametrize("write", [_through_data, _a_row_through_data, _other_data])
def test_what_is_written_behind_torchs_back_comes_behind_the_copy(
    write: Any, training: Training, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """A forward pass that writes to a parameter through its `data`, be it a row of a large table, waits for what is still to
    be copied: the snapshot is that of its boundary, and is not given up. Closed, the attribute is torch's own again."""
    training.step()
    expected = training.save()
    assert training.saver._pending is not None, "nothing is overlapped"
    write(training)
    held.let_go()
    assert_equal(training.stored(), expected)
    assert not caplog.records
    assert "data" in vars(torch.nn.Parameter)
    training.saver.close()
    assert "data" not in vars(torch.nn.Parameter)


def _in_place(training: Training) -> None:
    with torch.no_grad():
        training.model[0].weight[0, 0] += 1


def _loaded(training: Training) -> None:
    training.model.load_state_dict({key: value + 1 for key, value in training.model.state_dict().items()})


@pytest.mark.parametrize("write", [_in_place, _loaded])
def test_a_snapshot_that_was_written_to_is_given_up(
    write: Any, training: Training, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """A script that writes to its parameters between a boundary and the next optimizer step (weights that are swapped for an
    evaluation, say) loses that snapshot, is told, and from then on everything is copied at the boundary."""
    training.step()
    before = training.save(urgent=True)
    training.step()
    training.save()
    write(training)
    held.let_go()
    with caplog.at_level(logging.WARNING):
        training.saver.finish_handover()
    assert "is given up" in caplog.text
    assert training.saver.torn == {"E0_U2_S0-0001"}
    assert_equal(training.stored(), before)
    training.saver.sink = ThreadSink(training.storage, Keep(10), lambda: None)
    training.step()
    expected = training.save()
    write(training)
    assert_equal(training.stored(), expected)


def test_nothing_is_overlapped_where_steps_are_not_seen(training: Training, held: Held) -> None:
    """A step that is compiled or replayed by a CUDA graph does not call torch's hooks: then nothing would wait for the copy, so
    it is made at the boundary."""
    training.step()
    with torch.no_grad():
        training.model[0].weight.add_(1)  # as a replayed step does
    training.saver.at_boundary()
    expected = training.save()
    assert training.saver._pending is None
    _through_data(training)
    assert_equal(training.stored(), expected)


def test_an_urgent_save_waits_for_nothing_else(training: Training) -> None:
    """A stop's snapshot is handed over when `save` returns."""
    training.step()
    expected = training.save(urgent=True)
    assert training.saver._pending is None
    _through_data(training)
    assert_equal(training.stored(), expected)


def test_memory_is_ready_before_the_first_save(training: Training) -> None:
    """`prepare` makes the layout and the arena; the first save uses them, and so do the next ones."""
    training.step()
    training.saver.prepare(training.objects, NOTHING)
    plan = training.saver._planner.plan
    assert plan is not None
    coming = training.saver._arenas._coming
    assert coming is not None
    arena = coming.result()
    assert arena.size >= plan.bytes
    for _ in range(3):
        expected = training.save(urgent=True)
        assert_equal(training.stored(), expected)
        assert training.saver._arenas._arenas == [arena]
        assert training.saver._planner.plan is plan
        training.saver.sink = ThreadSink(training.storage, Keep(10), lambda: None)
        training.step()


def test_what_lies_between_is_done_once(training: Training) -> None:
    """A save whose copy is still under way when the next one is due is completed first."""
    names = []
    failpoints.set_observer(lambda name: names.append(name))
    try:
        for _ in range(4):
            training.step()
            training.save()
        training.saver.finish_handover()
    finally:
        failpoints.set_observer(None)
    assert names.count("save.begin") == 4
    assert [name for name in names if name in ("save.copied", "save.sealed")] == ["save.copied", "save.sealed"] * 4


class FakeStream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> FakeEvent:
        self.log.append(f"{self.name} records")
        return FakeEvent(self.log)

    def wait_event(self, event: FakeEvent) -> None:
        self.log.append(f"{self.name} waits for the event")

    def __enter__(self) -> None:
        self.log.append(f"in {self.name}")

    def __exit__(self, *_: object) -> None:
        self.log.append(f"out of {self.name}")


class FakeEvent:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def synchronize(self) -> None:
        self.log.append("the host waits")


class FakeDevice:
    """Streams and events as `torch.cuda` has them, that note what is asked of them."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def Stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self.log, "side")

    def current_stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self.log, "main")

    def stream(self, stream: FakeStream) -> FakeStream:
        return stream


def test_a_device_copies_after_what_was_queued_and_before_what_comes() -> None:
    """On a device: the side stream waits for the main one, copies, and records; the main stream waits for that where an
    optimizer's step begins, without the host; the host waits only before the snapshot is handed over."""
    device = FakeDevice()
    streams = devices.Streams(device)
    wanted = devices.DeviceCopies()
    large, small, odd = torch.arange(50_000.0), torch.arange(4, dtype=torch.int16), torch.arange(20).view(4, 5).T
    targets = [torch.zeros_like(large), torch.zeros_like(small), torch.zeros(5, 4, dtype=torch.int64)]
    for target, source in zip(targets, (large, small, odd)):
        wanted.add(target, source)
    assert [len(wanted.pairs), len(wanted.small)] == [2, 1]
    wanted.sample()
    transfer = streams.start(wanted)
    streams.hold(transfer)
    transfer.wait()
    assert all(torch.equal(target, source) for target, source in zip(targets, (large, small, odd)))
    assert not transfer.written()
    assert device.log == [
        "side waits for main",
        "in side",
        "side records",
        "out of side",
        "main waits for the event",
        "the host waits",
    ]


def test_what_is_written_to_a_device_while_it_is_copied_is_seen() -> None:
    """Samples of the memory, read before and behind the copies on the device itself, tell what no version counter does."""
    source = torch.arange(4.0)

    class Racing(FakeDevice):
        def current_stream(self, device: torch.device) -> FakeStream:
            source.data[2] = 7  # by a kernel that runs while the copies wait for their turn
            return super().current_stream(device)

    for sampled, broken in ((source, True), (source[:1], False)):
        source[2] = 2
        wanted = devices.DeviceCopies()
        wanted.add(torch.zeros(len(sampled)), sampled)
        wanted.sample()
        transfer = devices.Streams(Racing()).start(wanted)
        transfer.wait()
        assert transfer.written() == broken


def test_a_device_without_room_copies_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes together needs some memory of the device's: without it each tensor is copied by itself, and, since nobody
    could see it written to, before training goes on."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    source, target = torch.arange(4.0), torch.zeros(4)
    wanted = devices.DeviceCopies()
    wanted.add(target, source)
    wanted.sample()
    monkeypatch.setattr(torch, "cat", full)
    transfer = devices.Streams(FakeDevice()).start(wanted)
    transfer.wait()
    assert torch.equal(target, source)
    assert not transfer.watched


@pytest.mark.parametrize("threads", [1, 3])
def test_copies_are_whole_whoever_makes_them(threads: int) -> None:
    """Pieces of any size, by any number of threads, are all copied once `join` has returned, also when two join."""
    source = torch.randint(0, 255, (9_000_001,), dtype=torch.uint8)
    target = torch.zeros_like(source)
    cuts = [0, 1, 4096, 5_000_000, 9_000_001]
    pieces = [(target.data_ptr() + a, source.data_ptr() + a, b - a) for a, b in itertools.pairwise(cuts)]
    with ThreadPoolExecutor(3) as pool:
        copying = copies.Copying(pieces, pool, threads)
        other = pool.submit(copying.join)
        copying.join()
        assert torch.equal(source, target)
        other.result()


def test_a_hand_over_that_fails_in_the_background_is_made_up_for(training: Training, held: Held) -> None:
    """The daemon's mailbox may be full, or gone, when a late copy is complete: the rank persists the snapshot itself, and
    goes on so, also where the daemon's end is noticed meanwhile."""
    training.step()

    class Gone(ThreadSink):
        def submit(self, sealed: Any) -> None:
            raise OSError(28, "No space left on device")

    ours, made = training.saver.sink, []
    training.saver._fallback = lambda: made.append(ours) or ours
    training.saver.sink = Gone(training.storage, Keep(10), lambda: None)
    expected = training.save()
    held.let_go()
    training.saver.fall_back("the node daemon is gone")
    assert made == [ours]
    assert_equal(training.stored(), expected)
