"""One life of a run: claimed by one, refused while it lives, taken over when it is dead, over when it is taken over."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.errors import CheckpointInvalid, RunIsLive, StaleIncarnation
from autoresume.storage.local import LocalStorage
from tests.node.harness import environment, wait_until

CLAIMER = str(Path(__file__).with_name("claimer.py"))
ME = incarnation.this_process()


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "run")


def record(number: int, **more: object) -> Incarnation:
    """A life on this machine, of this process, unless said otherwise."""
    given = {
        "run_id": "run",
        "host": socket.gethostname(),
        "boot": incarnation.boot_id(),
        "processes": [ME],
        "world_size": 1,
        "command": ["train.py"],
    }
    return Incarnation(number, **{**given, **more})  # type: ignore[arg-type]


def put(storage: LocalStorage, number: int, **more: object) -> None:
    assert storage.create(f"incarnations/{number:04d}.json", record(number, **more).to_bytes())


@contextlib.contextmanager
def dying() -> Iterator[tuple[int, float]]:
    """A process that lives inside the block, and is dead after it."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield child.pid, psutil.Process(child.pid).create_time()
    finally:
        child.kill()
        child.communicate()


@pytest.fixture
def dead() -> tuple[int, float]:
    """A process that is no more."""
    with dying() as process:
        pass
    return process


# -- claiming ---------------------------------------------------------------------------------------


def start(storage: LocalStorage, go: Path, stay: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, CLAIMER, storage.root, go, stay],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_many_that_race_exactly_one_gets_the_run(storage: LocalStorage, tmp_path: Path) -> None:
    """Eight processes claim at the same moment: one has number 1, all others are told who has it."""
    processes = [start(storage, tmp_path / "go", "stay") for _ in range(8)]
    try:
        assert [line(process) for process in processes] == ["ready"] * 8
        (tmp_path / "go").touch()
        said = [line(process) for process in processes]
        (winner,) = [index for index, text in enumerate(said) if text == "1"]
        refused = [text for text in said if text.startswith("RunIsLive")]
        assert len(refused) == 7
        assert all(f"process {processes[winner].pid} on" in text for text in refused)
        assert incarnation.numbers(storage) == [1]
        assert incarnation.read(storage, 1).began == {"pid": processes[winner].pid}
        assert storage.list("incarnations") == ["0001.json"]
    finally:
        for process in processes:
            process.communicate("")


def test_lives_follow_each_other(storage: LocalStorage, tmp_path: Path) -> None:
    """When the first is dead the next one claims the next number, whether or not the first wrote down its end."""
    (tmp_path / "go").touch()
    for number in (1, 2, 3):
        process = start(storage, tmp_path / "go", "go")
        assert (line(process), line(process)) == ("ready", str(number))
        process.communicate()
        if number == 1:
            incarnation.record_end(storage, 1, "finished", 10, "")
    assert [one.number for one in incarnation.history(storage)] == [1, 2, 3]


def test_a_living_one_is_named(storage: LocalStorage) -> None:
    """The refusal says which incarnation, process, host and job holds the run, and what can be done."""
    with dying() as process:
        put(storage, 4, processes=[process], job={"id": "4711", "restart": 0})
        with pytest.raises(RunIsLive) as error:
            incarnation.claim(storage, record, [ME])
    text = str(error.value)
    for part in ("incarnation 4", f"process {process[0]}", record(1).host, "job 4711", "another run directory"):
        assert part in text
    assert incarnation.numbers(storage) == [4]


def test_a_dead_one_is_taken_over(storage: LocalStorage, dead: tuple[int, float]) -> None:
    """A life without any living process is over, though nobody wrote it down."""
    put(storage, 1, processes=[dead, dead])
    assert incarnation.claim(storage, record, [ME]).number == 2
    assert incarnation.read(storage, 1).ended is None


def test_one_that_ended_is_taken_over_though_its_processes_live(storage: LocalStorage) -> None:
    """What counts is that it said it has ended: its process may be doing something else by now."""
    with dying() as process:
        put(storage, 1, processes=[process])
        incarnation.record_end(storage, 1, "interrupted", 5, "SIGTERM received")
        assert incarnation.claim(storage, record, [ME]).number == 2


def test_the_own_daemon_is_no_stranger(storage: LocalStorage, dead: tuple[int, float]) -> None:
    """Ranks that were restarted in place take over from their predecessors under the same daemon, and nobody else."""
    with dying() as daemon:
        put(storage, 1, processes=[dead, daemon])
        with pytest.raises(RunIsLive):
            incarnation.claim(storage, record, [ME])
        assert incarnation.claim(storage, record, [ME, daemon]).number == 2


def test_a_number_that_another_process_has_now_is_nobody(storage: LocalStorage) -> None:
    """Process numbers come again: the start time tells a later process from the one that was meant."""
    put(storage, 1, processes=[(ME[0], ME[1] - 1000.0)])
    assert incarnation.claim(storage, record, []).number == 2


def test_a_zombie_does_not_live() -> None:
    """A process that has ended and was not waited for holds no run."""
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    started = psutil.Process(child.pid).create_time()
    wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert not incarnation.process_lives(child.pid, started)
    child.wait()
    assert not incarnation.process_lives(child.pid, started)
    assert incarnation.process_lives(*ME)


def test_a_claim_that_a_crash_cut_short_is_passed(storage: LocalStorage) -> None:
    """A record of which nothing can be read holds nobody up, keeps its number, and is left out of the history."""
    put(storage, 1, ended={"time": 1.0, "how": "died", "step": 3, "why": ""})
    storage.write("incarnations/0002.json", b'{"format_ver')
    storage.write("incarnations/0003.json", b"")
    storage.write("incarnations/notes.txt", b"hello")
    assert incarnation.numbers(storage) == [1, 2, 3]
    assert incarnation.claim(storage, record, [ME]).number == 4
    assert [one.number for one in incarnation.history(storage)] == [1, 4]
    with pytest.raises(CheckpointInvalid):
        incarnation.read(storage, 2)
    with pytest.raises(FileNotFoundError):
        incarnation.read(storage, 9)


def test_numbers_beyond_9999_are_numbers(storage: LocalStorage) -> None:
    """A run with very many lives goes on: the newest is the greatest number, not the last name."""
    put(storage, 9999, ended={"how": "died"})
    put(storage, 10000, ended={"how": "died"})
    assert incarnation.claim(storage, record, [ME]).number == 10001


# -- other machines ---------------------------------------------------------------------------------


def elsewhere(storage: LocalStorage, number: int = 1, **more: object) -> None:
    put(storage, number, host="far-away", boot="another", **more)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incarnation, "_SILENT_SECONDS", 1.2)


def test_a_heart_that_beats_elsewhere_refuses(storage: LocalStorage) -> None:
    """A life on another machine is alive as long as its heartbeat changes, and is named."""
    elsewhere(storage)
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.05):
            incarnation.write_heartbeat(storage, 1)

    incarnation.write_heartbeat(storage, 1)
    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(RunIsLive, match="on far-away"):
            incarnation.claim(storage, record, [ME])
    finally:
        stop.set()
        thread.join()


def test_a_heart_that_stands_still_is_dead(storage: LocalStorage, impatient: None) -> None:
    """A heartbeat that does not change for several beats is a life that was lost with its node."""
    elsewhere(storage)
    incarnation.write_heartbeat(storage, 1)
    began = time.monotonic()
    assert incarnation.claim(storage, record, [ME]).number == 2
    assert time.monotonic() - began >= 1.2


@pytest.mark.parametrize("heartbeat", [None, b"", b"not a number", b"1000.0"])
def test_a_heart_that_stopped_long_ago_is_not_waited_for(storage: LocalStorage, heartbeat: bytes | None) -> None:
    """Without a heartbeat, or with one of the last hour, the run goes on at once."""
    elsewhere(storage)
    if heartbeat is not None:
        storage.write("incarnations/0001.alive", heartbeat)
    began = time.monotonic()
    assert incarnation.claim(storage, record, [ME]).number == 2
    assert time.monotonic() - began < incarnation._SILENT_SECONDS / 2


def test_an_earlier_life_of_this_job_is_over(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm requeues a job after it ended it: the same job on another node takes over at once. Another job waits."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    job = incarnation.current_job()
    assert (job["id"], job["restart"], job["spelled"]) == ("4711", 3, "4711")
    elsewhere(storage, job={"id": "4711", "restart": 2})
    incarnation.write_heartbeat(storage, 1)
    began = time.monotonic()
    assert incarnation.claim(storage, record, [ME]).number == 2
    assert time.monotonic() - began < incarnation._SILENT_SECONDS / 2


def test_outside_of_slurm_there_is_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment, no job; and a first start has restart count 0."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert incarnation.current_job() == {}
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    assert (incarnation.current_job()["id"], incarnation.current_job()["restart"]) == ("1", 0)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    assert incarnation.current_job()["spelled"] == "1_7"  # the last task of an array has the array's own number


def test_a_reboot_ends_a_life(storage: LocalStorage) -> None:
    """After a reboot of this very host the process numbers of before mean nothing."""
    put(storage, 1, boot="before the reboot")
    assert incarnation.claim(storage, record, []).number == 2


# -- the end ----------------------------------------------------------------------------------------


def test_a_stale_life_is_stopped(storage: LocalStorage) -> None:
    """As soon as a later number is claimed the guard of an earlier one raises, and says who took over."""
    put(storage, 1)
    guard = incarnation.guard(storage, 1)
    guard()
    put(storage, 2)
    incarnation.guard(storage, 2)()
    with pytest.raises(StaleIncarnation, match="incarnation 2 has taken over this run; incarnation 1"):
        guard()


def test_how_it_ended_is_written_once(storage: LocalStorage) -> None:
    """The first word about the end stays; the heart stops beating with it."""
    put(storage, 1)
    incarnation.write_heartbeat(storage, 1)
    assert storage.size("incarnations/0001.alive")
    before = time.time()
    incarnation.record_end(storage, 1, "interrupted", 12, "SIGTERM received")
    incarnation.record_end(storage, 1, "died", None, "no word")
    ended = incarnation.read(storage, 1).ended
    assert ended is not None
    assert before <= ended.pop("time") <= time.time()
    assert ended == {"how": "interrupted", "step": 12, "why": "SIGTERM received"}
    assert storage.list("incarnations") == ["0001.json"]


def test_a_change_keeps_the_rest(storage: LocalStorage) -> None:
    """`update` changes what it is told to, of its own incarnation alone."""
    put(storage, 1, began={"time": 5.0})
    put(storage, 2)
    before = incarnation.read(storage, 2)
    incarnation.update(storage, 1, lambda one: one.began.update(step=3))
    assert incarnation.read(storage, 1) == record(1, began={"time": 5.0, "step": 3})
    assert incarnation.read(storage, 2) == before


def test_a_killed_claimer_leaves_no_half_claim(storage: LocalStorage, tmp_path: Path) -> None:
    """SIGKILL right after the claim: the number is taken, its record is whole, and the next life follows."""
    (tmp_path / "go").touch()
    killed = subprocess.run(
        [sys.executable, CLAIMER, storage.root, tmp_path / "go", "go"],
        env=environment(AUTORESUME_FAILPOINT="incarnation.claimed"),
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert incarnation.read(storage, 1).number == 1
    assert incarnation.claim(storage, record, [ME]).number == 2


# -- the record -------------------------------------------------------------------------------------

plain = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3)
records = st.builds(
    Incarnation,
    number=st.integers(1, 10**6),
    run_id=st.text(max_size=8),
    host=st.text(max_size=8),
    boot=st.text(max_size=8),
    processes=st.lists(st.tuples(st.integers(1, 2**22), st.floats(0, 1e10)), max_size=3),
    world_size=st.integers(1, 10**4),
    command=st.lists(st.text(max_size=5), max_size=3),
    job=plain,
    began=plain,
    ended=st.none() | plain,
)


@given(records)
def test_what_is_written_is_read(one: Incarnation) -> None:
    """A record comes back as it was written."""
    assert Incarnation.from_bytes(one.to_bytes()) == one


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()))
def test_rubbish_is_invalid(data: bytes) -> None:
    """Whatever stands in the file: it is a reason, and no other exception."""
    with pytest.raises(CheckpointInvalid):
        Incarnation.from_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [{"number": "one"}, {"job": None}, {"began": []}, {"ended": "yes"}, {"processes": [1]}, {"host": 5}, {"more": 1}],
    ids=str,
)
def test_a_record_that_makes_no_sense_is_invalid(storage: LocalStorage, damage: dict[str, object]) -> None:
    """A field that holds something else, or one too many, makes the record invalid, and holds nobody up."""
    content = {**json.loads(record(1, host="far-away").to_bytes()), **damage}
    storage.write("incarnations/0001.json", json.dumps(content).encode())
    with pytest.raises(CheckpointInvalid):
        incarnation.read(storage, 1)
    assert incarnation.claim(storage, record, [ME]).number == 2
