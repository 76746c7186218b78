"""Faults of real file systems under real trainings: what they cost is checkpoints, for as long as they last."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from autoresume.checkpoint.verify import verify
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.loggers import journal
from autoresume.storage import LocalStorage
from tests import warm
from tests.faults import disks
from tests.real_scripts import harness

SCRIPT = Path(__file__).with_name("train.py")
STEPS = 40
pytestmark = pytest.mark.timeout(300)


@dataclass
class Trainer:
    """Starts the training, as one process, or as two ranks with their daemon."""

    memory: Path

    def train(self, ranks: int, disk: Path, faults: str = "") -> harness.Ended:
        variables = {"AUTORESUME_RUN_DIR": f"{disk / 'run'}", "DISK": f"{disk}", "FAULTS": faults}
        if ranks == 1:
            return harness.Place(self.memory).run(str(SCRIPT), **variables)
        environment = harness.environment(AUTORESUME_MEMORY=str(self.memory), **variables)
        command = [sys.executable, "-m", "autoresume", "run", "--nproc", "2", "--grace", "20", str(SCRIPT)]
        done = warm.run(command, env=environment, capture_output=True, text=True, timeout=250)
        return harness.Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    (tmp_path / "memory").mkdir()
    return Trainer(tmp_path / "memory")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The run directory of a training that nothing happened to."""
    made: dict[int, Path] = {}

    def get(ranks: int) -> Path:
        if ranks not in made:
            disk = tmp_path_factory.mktemp("calm")
            done = Trainer(tmp_path_factory.mktemp("memory")).train(ranks, disk)
            assert done.code == 0, done.err
            made[ranks] = disk / "run"
        return made[ranks]

    return get


def committed(run: Path) -> list[int]:
    """The steps of the checkpoints of a run, which all must be whole."""
    storage = LocalStorage(run)
    found = [CheckpointName.parse(text) for text in storage.list(names.CHECKPOINTS)]
    for name in found:
        assert name is not None, "garbage"
        assert verify(storage, name) is None, verify(storage, name)
    return sorted(name.step for name in found if name is not None)


def no_garbage(run: Path) -> None:
    assert [path for path in run.rglob("*") if names.is_temporary(path.name)] == []


def lives(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((run / "incarnations").glob("*.json"))]


def metrics(run: Path) -> list[tuple[int, dict]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["values"]) for record in records]


def assert_same(run: Path, calm: Path) -> None:
    """Each step is in the journal once, with the same values, and the last state is the same, byte for byte."""
    assert [step for step, _ in metrics(run)] == list(range(1, STEPS + 1))
    assert metrics(run) == metrics(calm)
    for shard in sorted(calm.glob(f"checkpoints/*_U{STEPS}_*/shards/*")):
        (ours,) = run.glob(f"checkpoints/*_U{STEPS}_*/shards/{shard.name}")
        assert ours.read_bytes() == shard.read_bytes()
    no_garbage(run)
    assert committed(run) == committed(calm)


def said_of(done: harness.Ended, step: int) -> str:
    """What was said of the checkpoint of a step, which was not saved."""
    return next(line for line in done.err.splitlines() if f"_U{step}_" in line and "StorageF" in line)


def test_a_full_disk(tmp_path: Path, trainer: Trainer, calm) -> None:
    """While there is no room training goes on without saving, and says what to do; then it saves again.

    A stop signal while there is none ends in time, and names the checkpoint that a resume begins with. A
    start without room says so, and changes nothing.
    """
    with disks.tmpfs(tmp_path / "disk", 180) as folder:
        run = folder / "run"
        done = trainer.train(1, folder, "1:12:fill 1:22:empty 1:27:fill 1:32:TERM")
        assert done.code == 75, done.err
        for step, good in ((15, 10), (20, 10), (30, 25), (33, 25)):
            assert "training goes on" in said_of(done, step)
            assert f"_U{good}_" in said_of(done, step)
            assert "stays the last good checkpoint. Free some space" in said_of(done, step)
        assert done.err.count("metrics can't be written") == 2
        assert "metrics are written" in done.err
        assert committed(run) == [10, 25]
        assert [record.step for record in journal.read(run / names.JOURNAL)][:25] == list(range(1, 26))
        no_garbage(run)
        full = trainer.train(1, folder)
        assert full.code == 1
        assert "the run directory can't be used: [Errno 28] No space left on device" in full.err
        assert committed(run) == [10, 25]
        disks.empty(folder)
        done = trainer.train(1, folder)
        assert done.code == 0, done.err
        assert lives(run)[-1]["began"]["step"] == 25
        assert_same(run, calm(1))


def test_full_at_the_end(tmp_path: Path, trainer: Trainer, calm) -> None:
    """A training whose last state could not be saved is not finished: it says so, and the same command ends it."""
    with disks.tmpfs(tmp_path / "disk", 180) as folder:
        run = folder / "run"
        done = trainer.train(1, folder, "1:37:fill")
        assert done.code == 1, done.err
        assert "its last state, E1_U40_S320-0001, could not be saved: E1_U35_S280-0001 stays" in done.err
        disks.empty(folder)
        done = trainer.train(1, folder)
        assert done.code == 0, done.err
        assert lives(run)[-1]["began"]["step"] == 35
        assert lives(run)[-1]["ended"]["how"] == "finished"
        assert_same(run, calm(1))


def test_a_disk_that_fails(tmp_path: Path, trainer: Trainer, calm) -> None:
    """Training goes on without the disk, and stops in time; when the disk is back the last checkpoint is whole."""
    with disks.ext4(tmp_path / "disk", 180) as folder:
        run = folder / "run"
        done = trainer.train(1, folder, "1:12:shut_down 1:32:TERM")
        assert done.code == 75, done.err
        for step in (15, 20, 25, 30, 33):
            assert "Input/output error; training goes on, and E0_U10_S80-0001 stays" in said_of(done, step)
            assert "look at the machine's log" in said_of(done, step)
        assert done.err.count("metrics can't be written") == 1
        disks.mount_again(folder)
        assert committed(run)[-1] == 10
        done = trainer.train(1, folder)
        assert done.code == 0, done.err
        assert lives(run)[-1]["began"]["step"] == 10
        assert_same(run, calm(1))


def test_two_ranks_and_their_daemon(tmp_path: Path, trainer: Trainer, calm) -> None:
    """A disk that is full, has room again, and is then made read-only: what the daemon writes for the ranks is as safe."""
    with disks.ext4(tmp_path / "disk", 180) as folder:
        run = folder / "run"
        done = trainer.train(2, folder, "1:12:fill 1:22:empty 1:27:read_only 1:32:TERM")
        assert done.code == 75, done.err
        assert "E0_U10_S80-0001 stays the last good checkpoint. Free some space" in said_of(done, 15)
        assert "Read-only file system; training goes on, and E1_U25_S200-0001 stays" in said_of(done, 30)
        disks.mount_again(folder)
        assert committed(run)[-2:] == [10, 25]  # that an older one was pruned may be forgotten
        done = trainer.train(2, folder)
        assert done.code == 0, done.err
        assert lives(run)[-1]["began"]["step"] == 25
        assert_same(run, calm(2))
        assert [path for path in trainer.memory.rglob("*") if path.is_file()] == []


def test_a_quota(tmp_path: Path, trainer: Trainer, calm) -> None:
    """A quota that is exceeded though there is room: the same, and a kill afterwards repeats and loses no step."""
    with disks.btrfs_with_quota(tmp_path / "disk", 300) as folder:
        run = folder / "run"
        done = trainer.train(1, folder, "1:12:limit=1M 1:22:no_limit 1:27:KILL")
        assert done.code == -9, done.err
        assert "raining goes on, and E0_U10_S80-0001 stays" in said_of(done, 15)
        assert "Disk quota exceeded; training goes on" in done.err
        assert committed(run)[-1] == 25
        done = trainer.train(1, folder)
        assert done.code == 0, done.err
        assert lives(run)[-1]["began"]["step"] == 25
        assert_same(run, calm(1))


def test_a_run_in_the_lower_layer_of_a_container(tmp_path: Path, trainer: Trainer, calm) -> None:
    """Overlayfs can't rename folders that come from an image: a damaged checkpoint goes aside all the same, old ones are
    pruned, and the run goes on from the one before to the same end."""
    lower = tmp_path / "lower"
    lower.mkdir()
    assert trainer.train(1, lower, "1:33:KILL").code == -9
    (newest, before) = sorted(committed(lower / "run"))[:-3:-1]
    (shard,) = lower.glob(f"run/checkpoints/*_U{newest}_*/shards/*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with disks.overlay(tmp_path / "disk", lower) as folder:
        done = trainer.train(1, folder)
        assert done.code == 0, done.err
        assert "is put aside to aside/" in done.err
        assert "could not be deleted" not in done.err
        run = folder / "run"
        assert lives(run)[-1]["began"]["step"] == before
        assert_same(run, calm(1))
        assert min(committed(run)) > before
        (aside,) = (run / "aside").iterdir()
        assert {"manifest.json", "parts", "shards", "reason.txt"} <= {path.name for path in aside.iterdir()}
