"""Real ranks under torchrun, with and without the node daemon: interrupted and uninterrupted runs are equal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from autoresume.checkpoint.discover import list_checkpoints
from autoresume.checkpoint.verify import verify
from autoresume.format.names import CheckpointName, unchanged_file
from autoresume.storage import LocalStorage
from tests import warm
from tests.once import once

SCRIPT = Path(__file__).with_name("train.py")
STEPS = 4 * 12
pytestmark = pytest.mark.timeout(600)


def launch(folder: Path, command: list[str], memory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "AUTORESUME_RUN_DIR": str(folder),
        "AUTORESUME_MEMORY": str(memory),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return warm.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=500)


def torchrun(ranks: int) -> list[str]:
    return ["torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
            "--monitor-interval=0.1", str(SCRIPT)]  # fmt: skip


def with_daemon(ranks: int, *options: str) -> list[str]:
    return ["autoresume", "run", "--nproc", str(ranks), *options, str(SCRIPT)]


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return {record["step"]: record["values"] for record in records}


def final_files(folder: Path) -> dict[str, bytes]:
    """The tensor files of the last checkpoint: weights, optimizer, buffers and all generators of each rank."""
    (last,) = folder.glob(f"checkpoints/*_U{STEPS}_*")
    assert (last / "manifest.json").exists()
    return {path.name: path.read_bytes() for path in sorted((last / "shards").iterdir())}


def lives(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((folder / "incarnations").glob("*.json"))]


def nothing_left(folder: Path, memory: Path) -> None:
    assert [path for path in memory.rglob("*") if path.is_file()] == []
    mine = [
        p
        for p in psutil.process_iter(["environ"])
        if (p.info["environ"] or {}).get("AUTORESUME_RUN_DIR") == str(folder)
    ]
    assert mine == []


@pytest.fixture
def uninterrupted(tmp_path_factory: pytest.TempPathFactory):
    """Uninterrupted runs, one for each number of ranks that is asked for; with a daemon and without are the same."""

    def get(ranks: int, workers: str = "0") -> Path:
        def make(folder: Path) -> None:
            (folder / "memory").mkdir()
            done = launch(folder / "run", torchrun(ranks), folder / "memory", WORKERS=workers)
            assert done.returncode == 0, done.stderr

        return once(tmp_path_factory, f"multiprocess-{ranks}-{workers}", make) / "run"

    return get


def assert_same(folder: Path, other: Path) -> None:
    assert metrics(folder) == metrics(other)
    assert final_files(folder) == final_files(other)


DAEMON = {
    "SIGTERM to the daemon, then a rank killed": (
        "1:12:0:TERM:daemon 2:25:1:KILL:self",
        ["interrupted", "died", "finished"],
    ),
    "SIGUSR1 to one rank, SIGUSR2 to the launcher": (
        "1:13:1:USR1:self 2:24:0:USR2:parent",
        ["interrupted", "interrupted", "finished"],
    ),
    "rank 0 killed on the last batch of an epoch": ("1:23:0:KILL:self", ["died", "finished"]),
}


@pytest.mark.parametrize("what", DAEMON)
def test_with_the_daemon_every_interruption_leaves_no_trace(what: str, uninterrupted, tmp_path: Path) -> None:
    """Under `autoresume run` the run goes on by itself after each interruption, and ends bit for bit the same."""
    events, endings = DAEMON[what]
    folder, memory = tmp_path / "run", tmp_path / "memory"
    memory.mkdir()
    done = launch(folder, with_daemon(2, "--grace", "20"), memory, EVENTS=events)
    assert done.returncode == 0, done.stderr
    assert [life["ended"]["how"] for life in lives(folder)] == endings
    assert_same(folder, uninterrupted(2))
    nothing_left(folder, memory)


def test_the_elastic_agent_restarts_ranks_in_place(uninterrupted, tmp_path: Path) -> None:
    """With --in-place torchrun starts the ranks again under the same daemon; what was sealed is not lost."""
    folder, memory = tmp_path / "run", tmp_path / "memory"
    memory.mkdir()
    done = launch(folder, with_daemon(2, "--in-place", "2", "--max-restarts", "0"), memory, EVENTS="1:16:1:KILL:self")
    assert done.returncode == 0, done.stderr
    first, second = lives(folder)
    assert (first["ended"]["how"], second["ended"]["how"]) == ("died", "finished")
    assert second["began"]["step"] == 14
    assert_same(folder, uninterrupted(2))
    nothing_left(folder, memory)


@pytest.mark.parametrize("damaged", ["shards", "arenas"])
def test_ranks_go_on_from_memory(damaged: str, uninterrupted, tmp_path: Path) -> None:
    """Ranks that are started again on their node take the snapshot from its memory, and the disk's bytes only where
    those in memory are damaged: whichever of both was overwritten, the run ends bit for bit the same, and no
    checkpoint is put aside."""
    folder, memory = tmp_path / "run", tmp_path / "memory"
    memory.mkdir()
    command = with_daemon(2, "--in-place", "2", "--max-restarts", "0")
    done = launch(folder, command, memory, EVENTS="1:16:1:KILL:self", DAMAGE=damaged)
    assert done.returncode == 0, done.stderr
    assert [life["ended"]["how"] for life in lives(folder)] == ["died", "finished"]
    assert lives(folder)[1]["began"]["step"] == 14
    assert not (folder / "aside").exists()
    assert_same(folder, uninterrupted(2))
    nothing_left(folder, memory)


@pytest.mark.parametrize("damaged", ["shards", "arenas"])
def test_frozen_weights_in_memory_and_on_the_disk(damaged: str, uninterrupted, tmp_path: Path) -> None:
    """The same with a frozen encoder, which the checkpoints before the kill share as a file: each of both ranks goes on
    from what is right, a file that was damaged on the disk is in no later checkpoint, and what is trained ends the same
    as without the encoder."""
    folder, memory = tmp_path / "run", tmp_path / "memory"
    memory.mkdir()
    command = with_daemon(2, "--in-place", "2", "--max-restarts", "0")
    done = launch(folder, command, memory, EVENTS="1:30:1:KILL:self", DAMAGE=damaged, FROZEN="1", COMMITTED="28")
    assert done.returncode == 0, done.stderr
    assert [life["ended"]["how"] for life in lives(folder)] == ["died", "finished"]
    assert lives(folder)[1]["began"]["step"] == 28
    assert metrics(folder) == metrics(uninterrupted(2))
    storage, (last, before) = LocalStorage(folder), checkpoints(folder)
    assert verify(storage, last) is None
    for rank in range(2):
        one, other = (os.stat(storage.path(name.inside(unchanged_file(rank)))) for name in (last, before))
        assert one.st_ino == other.st_ino
        assert one.st_size > 7 * 40_000 * 4  # each rank holds all of it, and nobody promised that they are equal
    nothing_left(folder, memory)


def checkpoints(folder: Path) -> list[CheckpointName]:
    """Newest first."""
    return list_checkpoints(LocalStorage(folder))


@pytest.mark.parametrize("events", ["1:12:0:TERM:parent", "1:12:1:USR2:self", "1:12:0:USR1:parent"])
def test_plain_torchrun_stops_all_ranks_at_one_step(events: str, uninterrupted, tmp_path: Path) -> None:
    """Without a daemon a signal to torchrun or to any rank makes all ranks save one step, and leave."""
    folder, memory = tmp_path / "run", tmp_path / "memory"
    memory.mkdir()
    first = launch(folder, torchrun(2), memory, EVENTS=events)
    assert first.returncode != 0
    (life,) = lives_once_gone(folder)
    assert life["ended"]["how"] == "interrupted", first.stderr
    second = launch(folder, torchrun(2), memory)
    assert second.returncode == 0, second.stderr
    assert lives(folder)[1]["began"]["step"] == life["ended"]["step"]
    assert_same(folder, uninterrupted(2))
    nothing_left(folder, memory)


def lives_once_gone(folder: Path) -> list[dict]:
    """torchrun dies at once of SIGUSR1; its ranks save and leave a little later."""
    mine = [
        p
        for p in psutil.process_iter(["environ"])
        if (p.info["environ"] or {}).get("AUTORESUME_RUN_DIR") == str(folder)
    ]
    psutil.wait_procs(mine, timeout=200)
    return lives(folder)


def test_plain_torchrun_survives_a_killed_rank(uninterrupted, tmp_path: Path) -> None:
    """SIGKILL to one rank: the same command again goes on from the last committed checkpoint."""
    folder, memory = tmp_path / "run", tmp_path / "memory"
    memory.mkdir()
    killed = launch(folder, torchrun(2), memory, EVENTS="1:19:1:KILL:self", COMMITTED="14")
    assert killed.returncode != 0
    assert launch(folder, torchrun(2), memory).returncode == 0
    assert lives(folder)[1]["began"]["step"] == 14
    assert_same(folder, uninterrupted(2))


def test_four_ranks_with_workers(uninterrupted, tmp_path: Path) -> None:
    """Four ranks with data workers, whose augmentation is random: one rank is killed, then all are preempted."""
    folder, memory = tmp_path / "run", tmp_path / "memory"
    memory.mkdir()
    events = "1:17:3:KILL:self 2:29:2:TERM:self"
    done = launch(folder, with_daemon(4, "--grace", "25"), memory, EVENTS=events, WORKERS="1")
    assert done.returncode == 0, done.stderr
    assert [life["ended"]["how"] for life in lives(folder)] == ["died", "interrupted", "finished"]
    assert_same(folder, uninterrupted(4, "1"))
    nothing_left(folder, memory)


def test_another_number_of_ranks_sees_the_same_samples(tmp_path: Path) -> None:
    """Interrupted with two ranks and gone on with one: every step is there once, and the order of data is kept."""
    folder, memory = tmp_path / "run", tmp_path / "memory"
    memory.mkdir()
    assert launch(folder, torchrun(2), memory, EVENTS="1:12:0:TERM:self").returncode != 0
    done = warm.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "AUTORESUME_RUN_DIR": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(metrics(folder)) == STEPS
    assert [life["world_size"] for life in lives(folder)] == [2, 1]


@pytest.mark.parametrize(
    "command", [["autoresume", "run", "--nproc", "2"], torchrun(2)[:-1]], ids=["daemon", "torchrun"]
)
def test_a_save_needs_no_word_between_ranks(command: list[str], tmp_path: Path) -> None:
    """Once the ranks know that their data are dealt out evenly, a save of an unchanged layout waits for no word: all
    call the checkpoint the same without asking, and it is committed."""
    script = str(Path(__file__).with_name("counting.py"))
    done = launch(tmp_path / "run", [*command, script], tmp_path, TOLD=str(tmp_path / "told"))
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        saves, told = map(int, (tmp_path / f"told-{rank}").read_text().split())
        assert saves > 3
        assert told == 0
    assert len(list((tmp_path / "run").glob("checkpoints/*/manifest.json"))) == 3
    assert "not saved" not in done.stderr
