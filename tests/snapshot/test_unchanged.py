"""Promises of what does not change: it is found, written once, and noticed when it changes after all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from autoresume.checkpoint.discover import judge, load_part
from autoresume.checkpoint.retain import Keep
from autoresume.checkpoint.verify import verify
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk, Part
from autoresume.load.read_checkpoint import choose_and_read
from autoresume.load.reader import CheckpointReader
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot import copies, saver
from autoresume.snapshot.saver import Saver
from autoresume.snapshot.sinks import ThreadSink
from autoresume.snapshot.unchanged import Unchanged
from autoresume.storage import LocalStorage

NOTHING: frozenset[Any] = frozenset()
ENCODER = {"model/0.weight", "model/0.bias"}


def named(step: int) -> CheckpointName:
    return CheckpointName(step=step, incarnation=1, epoch=0, samples=0)


class Training:
    """A frozen encoder of 1.4 MB with a small head, trained with Adam."""

    def __init__(self, folder: Path, unchanged: Unchanged | None = None) -> None:
        torch.manual_seed(0)
        self.storage = LocalStorage(folder)
        self.model = torch.nn.Sequential(torch.nn.Linear(20, 17000), torch.nn.ReLU(), torch.nn.Linear(17000, 3))
        self.model[0].requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model[2].parameters())
        self.sink = ThreadSink(self.storage, Keep(20), lambda: None)
        self.saver = Saver("run", Ranks(), self.sink, None, lambda: self.sink, unchanged)
        self.steps = 0

    @property
    def objects(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}

    def step_and_save(self, urgent: bool = False) -> Part:
        """One step, a checkpoint of it, which is whole and what the objects are; its part."""
        self.optimizer.zero_grad()
        self.model(torch.randn(2, 20)).square().mean().backward()
        self.optimizer.step()
        self.saver.at_boundary()
        self.steps += 1
        return self.save(urgent)

    def save(self, urgent: bool = False) -> Part:
        name = named(self.steps)
        self.saver.save(name, self.objects, NOTHING, {}, urgent=urgent)
        self.saver.finish_handover()
        while not self.sink.idle():
            os.sched_yield()
        assert verify(self.storage, name, "run") is None
        restored = choose_and_read(self.storage, "run", Ranks(), lambda: None, {})
        assert restored is not None
        assert restored.manifest.checkpoint == name
        for key, value in self.model.state_dict().items():
            assert torch.equal(restored.states["model"][key], value)
        return load_part(self.storage, restored.manifest, 0)

    def second_files(self) -> list[int | None]:
        """The inode of each checkpoint's second tensor file, oldest first."""
        found = []
        for name in sorted(map(CheckpointName.parse, self.storage.list(names.CHECKPOINTS)), key=lambda one: one.step):  # type: ignore[union-attr]
            assert name is not None
            path = self.storage.path(name.inside(names.unchanged_file(0)))
            found.append(path.stat().st_ino if path.exists() else None)
        return found


def inside(part: Part) -> set[str]:
    """What lies in the second file."""
    if part.unchanged is None:
        return set()
    begin = part.tensor_files[1][0]
    return {chunk.name for chunk in part.chunks if chunk.begin >= begin}


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    made = Training(tmp_path)
    yield made
    made.saver.close()


def test_frozen_weights_are_written_once(training: Training) -> None:
    """They are found by the first two saves, written to a file of their own by the third, and are that file in all that
    come after it: urgent ones, too. What is trained is never in it."""
    parts = [training.step_and_save(urgent=step == 4) for step in range(6)]
    assert [inside(part) for part in parts] == [set(), set()] + 4 * [ENCODER]
    first, *others = training.second_files()[2:]
    assert first is not None
    assert others == [first] * 3
    assert parts[-1].shard.bytes < parts[0].shard.bytes - 20 * 17000 * 4


@pytest.mark.parametrize("how", ["data", "numpy", "optimizer"])
def test_a_change_is_noticed_however_it_is_made(training: Training, how: str) -> None:
    """Each checkpoint holds what the weights were, whether or not torch's version counters moved: a frozen weight that
    is written to by hand, or that is trained from now on."""
    for _ in range(4):
        training.step_and_save()
    weight = training.model[0].weight
    if how == "data":
        weight.data[16999, 19] += 1
    elif how == "numpy":
        weight.detach().numpy()[0, 0] = 7
    else:
        weight.requires_grad_(True)
        training.optimizer.add_param_group({"params": [weight]})
    training.step_and_save()  # compares what is stored with what there is
    training.step_and_save()
    *_, third, fourth, fifth, sixth = training.second_files()
    assert third == fourth
    assert fifth != fourth
    assert (sixth == fifth) is (how != "optimizer")


def test_what_is_thawed_and_what_is_frozen_later_is_found(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of every sixteen saves are looked at: of four, here."""
    monkeypatch.setattr("autoresume.snapshot.unchanged._EACH", 4)
    for _ in range(3):
        training.step_and_save()
    training.model[0].weight.requires_grad_(True)
    training.optimizer.add_param_group({"params": [training.model[0].weight]})
    parts = [training.step_and_save() for _ in range(4)]
    assert inside(parts[-1]) == set()  # the bias alone is not worth a file
    training.optimizer.param_groups.pop()
    training.optimizer.state.pop(training.model[0].weight)
    training.model[0].weight.requires_grad_(False)
    parts = [training.step_and_save() for _ in range(8)]
    assert inside(parts[-1]) == ENCODER


def test_a_process_that_goes_on_links_at_once(training: Training, tmp_path: Path) -> None:
    """It knows from the checkpoint which tensors those were: its first save is the same file already."""
    for _ in range(3):
        training.step_and_save()
    restored = choose_and_read(training.storage, "run", Ranks(), lambda: None, {})
    assert restored is not None
    assert restored.unchanged == ENCODER
    unchanged = Unchanged()
    unchanged.resume(restored.unchanged)
    later = Training(tmp_path, unchanged)
    later.model.load_state_dict(restored.states["model"])
    later.steps = training.steps
    later.step_and_save()
    assert later.second_files()[-1] == training.second_files()[2]
    later.saver.close()


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    """unchanged="write": one file a rank in each checkpoint, after one that has two as well."""
    unchanged = Unchanged(looks=False)
    unchanged.resume(frozenset(ENCODER))
    training = Training(tmp_path, unchanged)
    assert [inside(training.step_and_save()) for _ in range(4)] == [set()] * 4
    training.saver.close()


def test_little_is_not_worth_a_file() -> None:
    """Small tensors are not looked at (whether a generator was used is chance), nor is a file made for a few."""
    image = memoryview(bytearray(2**21))
    sizes = {"small": 60_000, "large": 70_000, "larger": 2**20}
    pool = ThreadPoolExecutor(1)
    for left_out, expected in (("larger", set[str]()), ("none", {"large", "larger"})):
        chunks, begin = [], 0
        for name, size in sizes.items():
            if name != left_out:
                chunks.append(Chunk(name, "uint8", (size,), (0,), (size,), False, begin))
                begin += size
        unchanged = Unchanged()
        for step in range(2):
            unchanged.start_comparing(step, image, chunks, pool)
            unchanged.finish_comparing()
        assert unchanged.names == expected
    pool.shutdown()


def test_what_is_kept_in_memory_has_both_files(training: Training, tmp_path: Path) -> None:
    """A restart in the same node reads neither of them from the disk."""
    for _ in range(3):
        training.step_and_save()
    (newest, *_) = sorted(map(CheckpointName.parse, training.storage.list(names.CHECKPOINTS)), reverse=True)  # type: ignore[type-var]
    assert newest is not None
    manifest = judge(training.storage, newest).manifest
    assert manifest is not None
    part = load_part(training.storage, manifest, 0)
    image = bytearray(part.image_bytes)
    for begin, file in part.tensor_files:
        image[begin : begin + file.bytes] = training.storage.read(newest.inside(file.name))
    (tmp_path / "arena").write_bytes(image)
    for _, file in part.tensor_files:
        training.storage.remove(newest.inside(file.name))
    reader = CheckpointReader(training.storage, manifest, 0, {(0, part.image_bytes): tmp_path / "arena"})
    found = reader.read(dict.fromkeys(sorted(ENCODER | {"model/2.weight"})))
    for key, tensor in found.items():
        assert torch.equal(tensor, training.model.state_dict()[key.removeprefix("model/")])


def test_what_is_frozen_is_copied_while_training_goes_on(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """A periodic save does not stop for it; a script that does write to it before the next step loses that snapshot,
    is told so once, and what seemed to be frozen is copied at the boundary from then on."""
    late: list[set[int]] = []
    original = saver.Saver._may_wait

    def stays(*arguments: Any) -> frozenset[int]:
        late.append(set(original(*arguments)))
        return frozenset(late[-1])

    monkeypatch.setattr(saver.Saver, "_may_wait", stays)
    frozen, head = training.model[0].weight.data_ptr(), training.model[2].weight.data_ptr()
    for _ in range(4):
        training.step_and_save()
    assert [frozen in found for found in late] == [False, False, True, True]
    assert all(head in found for found in late)

    work = copies.Copying._work
    go = threading.Event()

    def slow(copying: copies.Copying) -> None:
        if threading.current_thread() is not threading.main_thread():
            go.wait(60)
        work(copying)

    monkeypatch.setattr(copies.Copying, "_work", slow)
    training.saver.save(named(training.steps + 1), training.objects, NOTHING, {}, urgent=False)
    with torch.no_grad():
        training.model[0].weight.add_(1)
    go.set()
    training.saver.finish_handover()
    assert training.saver.torn == {str(named(training.steps + 1))}
    assert training.saver.overlaps
    training.steps += 1
    training.step_and_save()
    assert frozen not in late[-1]
    assert head in late[-1]
    with torch.no_grad():
        training.model[0].weight.add_(1)
    training.step_and_save()


def test_what_may_be_written_at_any_time_is_not_copied_late(tmp_path: Path) -> None:
    """A buffer of a module that has not changed yet is in the second file, and copied at the boundary nevertheless: the
    next forward pass may write to it, and no version counter tells."""
    training = Training(tmp_path)
    training.model.register_buffer("seen", torch.zeros(300_000))
    for _ in range(4):
        training.step_and_save()
    saved, seen = training.saver, training.model.seen
    assert isinstance(seen, torch.Tensor)
    assert "model/seen" in saved.unchanged.names
    assert seen.data_ptr() not in saved._optimizers._late
    assert training.model[0].weight.data_ptr() in saved._optimizers._late
    saved.close()


def test_two_saves_of_one_step_tell_nothing() -> None:
    """What is the same then is all that there is."""
    image = memoryview(bytearray(2**21))
    chunks = [Chunk("w", "uint8", (2**21,), (0,), (2**21,), False, 0)]
    with ThreadPoolExecutor(1) as pool:
        unchanged = Unchanged()
        for step in (1, 1, 1):
            unchanged.start_comparing(step, image, chunks, pool)
            unchanged.finish_comparing()
        assert unchanged.names == set()
        unchanged.start_comparing(2, image, chunks, pool)
        unchanged.finish_comparing()
        assert unchanged.names == {"w"}
