"""What follows a life: the record on disk, the request to stop, and the verdict together."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from autoresume.checkpoint import incarnation, requests
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.node import conclusion, verdicts
from autoresume.node.causes import Cause
from autoresume.node.cluster import Notice
from autoresume.node.verdicts import Kind
from autoresume.storage.local import LocalStorage
from tests.node.harness import Node, make_run


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return make_run(tmp_path / "run")


def add_life(
    storage: LocalStorage, number: int, cause: Cause = Cause.ERROR, step: int | None = 0, **ended: object
) -> None:
    """A life that is over, and what a daemon wrote of its end."""
    storage.create(f"incarnations/{number:04d}.json", Incarnation(
        number=number, run_id="fa4e4a4c0001", host="node1", boot="b", processes=[(1, 1.0)], world_size=1,
        command=["train.py"], began={"time": time.time(), "step": step},
    ).to_bytes())  # fmt: skip
    incarnation.record_end(storage, number, "failed", 12, "ValueError: a", {"cause": cause.value, **ended})


def add_checkpoint(storage: LocalStorage, step: int) -> None:
    """The newest committed step, as far as a listing tells it."""
    folder = storage.root / f"checkpoints/E0_U{step}_S{step}-0001"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def decide(storage: LocalStorage, cause: Cause, number: int | None, why: str = "") -> verdicts.Verdict:
    end = conclusion.LifeEnd(cause, number, stepped=True, why=why)
    means = conclusion.Means(restarts_here=True, can_requeue=True)
    return conclusion.conclude_life(storage.root, end, Notice(), means)


def ended(storage: LocalStorage, number: int) -> dict[str, object]:
    found = incarnation.read(storage, number).ended
    assert found is not None
    return found


def test_what_the_cluster_said_and_what_follows_is_written_into_the_record(storage: LocalStorage) -> None:
    """The cause that the batch system names replaces the one that was seen, and `then` says what follows."""
    add_life(storage, 1, Cause.SIGNAL)
    assert decide(storage, Cause.PREEMPTED, 1).kind is Kind.REQUEUE
    assert (ended(storage, 1)["cause"], ended(storage, 1)["then"]) == (
        "preempted",
        "requeue: preempted: the job is requeued",
    )


def test_a_stop_before_the_run_was_claimed_is_not_the_life_befores(storage: LocalStorage) -> None:
    """The record of an earlier life stays as it was: its cause counts in its own budget."""
    add_life(storage, 1, Cause.ERROR, error="ValueError: a")
    before = ended(storage, 1)
    assert decide(storage, Cause.PREEMPTED, None).kind is Kind.REQUEUE
    assert ended(storage, 1) == before
    assert [life.cause for life in conclusion.past_lives(storage)] == [Cause.ERROR]


def test_starts_that_fail_are_counted(storage: LocalStorage) -> None:
    """They claim no number, and still the third within a day is the last: nothing starts again for ever."""
    add_life(storage, 1, Cause.PREEMPTED)
    add_checkpoint(storage, 12)
    verdicts = [decide(storage, Cause.START, None, why="exit code 3") for _ in range(3)]
    assert [verdict.kind for verdict in verdicts] == [Kind.RESTART, Kind.RESTART, Kind.NOTHING]
    assert verdicts[-1].hopeless
    assert ended(storage, 1)["cause"] == "preempted"
    assert [life.cause for life in conclusion.past_lives(storage)] == [Cause.PREEMPTED] + [Cause.START] * 3


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[1, null]", b'{"time": 1}', b'[{"time": null, "cause": 7}]'])
def test_a_damaged_note_of_failed_starts_stops_nobody(storage: LocalStorage, rubbish: bytes) -> None:
    """It is begun anew."""
    add_life(storage, 1, Cause.PREEMPTED)
    add_checkpoint(storage, 12)
    storage.write("jobs/failed-starts.json", rubbish)
    assert decide(storage, Cause.START, None).kind is Kind.RESTART
    assert json.loads(storage.read("jobs/failed-starts.json"))[-1]["cause"] == "start"


def test_a_request_to_stop_holds(storage: LocalStorage) -> None:
    """It was made while the life trained, or while it was starting; and the record says so."""
    add_life(storage, 1, Cause.SIGNAL)
    requests.ask_to_stop(storage, "autoresume stop by me")
    assert decide(storage, Cause.SIGNAL, 1).asked_for
    assert ended(storage, 1)["cause"] == "stopped"
    assert decide(storage, Cause.PREEMPTED, None).asked_for


def test_a_request_to_an_earlier_life_is_void(storage: LocalStorage) -> None:
    """Its user started the run again since: a preemption before that start has claimed the run requeues it."""
    add_life(storage, 1, Cause.STOPPED)
    long_ago = {"time": time.time() - 86400, "why": "autoresume stop by me"}
    storage.write("requests/stop.json", json.dumps(long_ago).encode())
    assert decide(storage, Cause.PREEMPTED, None).kind is Kind.REQUEUE


def test_a_request_is_cleared_by_a_later_start_alone(storage: LocalStorage) -> None:
    """A life that was still starting when it was asked to stop must not clear that away."""
    began = time.time()
    requests.ask_to_stop(storage, "now")
    requests.clear(storage, began)
    assert requests.stop_requested(storage) == "now"
    requests.clear(storage, time.time() + 1)
    assert requests.stop_requested(storage) is None


def test_lives_that_never_came_to_begin_count_without_a_step(storage: LocalStorage) -> None:
    """Their record holds no step: that is not step 0, from which a checkpoint would be progress."""
    for number in range(1, 6):
        add_life(storage, number, Cause.UNKNOWN, step=None)
    add_checkpoint(storage, 100)
    verdict = decide(storage, Cause.KILLED, 5)
    assert verdict.hopeless
    assert "no checkpoint beyond step 100" in verdict.why


def test_a_command_that_fails_at_its_start_is_not_tried_for_ever(node: Node) -> None:
    """The daemon of a run that has trained tries it twice again, in the same job; and then says why no more (70)."""
    add_life(node.storage, 1, Cause.PREEMPTED)
    add_checkpoint(node.storage, 12)
    command = [
        sys.executable,
        "-m",
        "autoresume",
        "node",
        "--restarts",
        "--",
        sys.executable,
        "-c",
        "raise SystemExit(3)",
    ]
    ended = node.wait(node.start(command, AUTORESUME_RUN_DIR=str(node.storage.root)))
    assert ended.code == 70, ended.err
    assert ended.err.count("the ranks are started again in this job") == 2
    assert "3 lives within a day ended so (start), and 2 are allowed" in ended.err
    node.assert_nothing_is_left()
