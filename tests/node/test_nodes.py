"""Several nodes as they are in life: a daemon each, with a rank below it; on one machine, without Slurm and torch."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil
import pytest

from autoresume.checkpoint.incarnation import Incarnation
from tests.node.harness import HERE, Node, wait_until


def start(
    node: Node,
    count: int,
    *arguments: Any,
    spares: int = 0,
    grace: float = 20.0,
    before: Sequence[str] = (),
    daemon: Sequence[str] = ("-m", "autoresume"),
) -> list[subprocess.Popen[str]]:
    """A daemon on each of the nodes n0, n1, ..., and a fake rank (started by the command `before`) below those."""
    made = []
    for number in range(count):
        command = [sys.executable, *daemon, "node", "--nodes", str(count), "--node-rank", str(number)]
        command += [
            "--spares",
            str(spares),
            "--meeting",
            str(node.folder / "meet"),
            "--grace",
            str(grace),
            "--restarts",
        ]
        rank = [
            *before,
            sys.executable,
            str(HERE / "fake_rank.py"),
            "--folder",
            str(node.folder),
            "--lockstep",
            *map(str, arguments),
        ]
        made.append(node.start([*command, "--", *rank], SLURMD_NODENAME=f"n{number}"))
    return made


def codes(node: Node, daemons: list[subprocess.Popen[str]]) -> list[int]:
    return [node.wait(daemon).code for daemon in daemons]


def say(node: Node, daemons: list[subprocess.Popen[str]]) -> str:
    return "\n".join(node.err(daemon) for daemon in daemons)


@pytest.mark.parametrize("hit", [0, 1])
def test_a_signal_on_any_node_stops_the_ranks_of_all_at_one_step(node: Node, hit: int) -> None:
    """They act at the same step, which is one committed checkpoint; all daemons leave with 75, and leave nothing."""
    daemons = start(node, 2, "--save-every", 10)
    wait_until(lambda: node.steps_are_made(ranks=2), what="both ranks to train")
    daemons[hit].send_signal(signal.SIGUSR1)
    assert codes(node, daemons) == [75, 75], say(node, daemons)
    ((step, order),) = node.acted(0)
    assert (order, node.acted(1)) == ("STOP", [(step, "STOP")])
    assert node.checkpoints()[0].step == step
    assert node.ended() == ("interrupted", step, "SIGUSR1 received")
    node.assert_nothing_is_left()


def test_a_bad_node_is_spared(node: Node) -> None:
    """The second life that comes to a bad end on a node is the last there: the spare one takes its place."""
    first = Incarnation(
        number=1, run_id="fa4e4a4c0001", host="n1", boot="b", processes=[(1, 1.0)], world_size=2, command=["x"],
        began={"time": time.time(), "step": 0},
        ended={"time": time.time(), "how": "died", "step": 5, "why": "killed", "cause": "killed", "node": "n1"},
    )  # fmt: skip
    node.storage.create("incarnations/0001.json", first.to_bytes())
    daemons = start(node, 3, "--steps", 60, "--save-every", 10, "--accident", "kill", "--at", 30, "--rank", 1, spares=1)
    assert codes(node, daemons) == [0, 0, 0], say(node, daemons)
    assert [note["node"] for note in node.notes("began", rank=1)] == ["n1", "n2"]
    assert [note["node"] for note in node.notes("began", rank=0)] == ["n0", "n0"]
    ended = [node.record(number).ended or {} for number in (2, 3)]
    assert [(one["cause"], one["node"]) for one in ended] == [("killed", "n1"), ("finished", None)]
    node.assert_nothing_is_left()


def test_a_lost_node_is_told_by_its_name(node: Node) -> None:
    """Its daemon is killed, and its rank with it: the others are ended at once, and the record blames that node."""
    daemons = start(node, 2, "--save-every", 10)
    wait_until(lambda: node.steps_are_made(ranks=2), what="both ranks to train")
    daemons[1].kill()
    assert codes(node, daemons)[0] not in (0, 75), say(node, daemons)
    ended = node.record().ended or {}
    assert (ended["cause"], ended["node"]) == ("node failure", "n1")
    assert "node 1 is lost" in ended["why"]


IMPATIENT = """
from autoresume.cli import main
from autoresume.node import coordinator
coordinator.SILENT_SECONDS = 8
main()
"""


def test_a_spare_node_takes_the_place_of_one_that_went_silent(node: Node) -> None:
    """A node that hangs is lost once it has said nothing for long; the spare one, which had nothing to say for just as long,
    is not. The lost one is never asked again, and leaves when it comes back to itself."""
    daemons = start(node, 3, "--steps", 10**6, "--save-every", 10, spares=1, daemon=("-c", IMPATIENT))
    wait_until(lambda: node.steps_are_made(ranks=2), what="both ranks to train")
    hanging = [psutil.Process(daemons[1].pid), *psutil.Process(daemons[1].pid).children(recursive=True)]
    for process in hanging:
        process.suspend()
    wait_until(lambda: len(node.notes("began", rank=1)) == 2, what="the spare node to begin")
    wait_until(lambda: node.steps_are_made(ranks=2), what="both ranks to train again")
    for process in hanging:
        process.resume()
    assert node.wait(daemons[1]).code == 1
    assert [note["node"] for note in node.notes("began", rank=1)] == ["n1", "n2"]
    assert [line for line in say(node, daemons).splitlines() if "said nothing" in line and "killed" not in line] == [
        "autoresume node 0: node 1 is lost: it has said nothing for 8 s"
    ]
    daemons[2].send_signal(signal.SIGUSR1)
    assert [node.wait(daemons[number]).code for number in (0, 2)] == [75, 75], say(node, daemons)
    node.assert_nothing_is_left()


def taken(node: Node, last_round: int) -> list[str]:
    return [sys.executable, str(HERE / "taken.py"), str(last_round), str(node.folder / "ports")]


def test_a_port_that_was_taken_meanwhile_is_mended_by_another(node: Node) -> None:
    """A launcher that could not listen has brought nobody to a step; the next round, on a new port, trains on."""
    daemons = start(node, 2, "--steps", 30, before=taken(node, 2))
    assert codes(node, daemons) == [0, 0], say(node, daemons)
    assert {note["node"] for rank in (0, 1) for note in node.notes("began", rank=rank)} == {"n0", "n1"}
    assert len(set((node.folder / "ports").read_text().split())) == 2, "each round has a port of its own"
    node.assert_nothing_is_left()


def test_a_port_that_is_always_taken_ends_the_job(node: Node) -> None:
    """Where the user's own flags name it no other can be tried: it ends, and says so."""
    daemons = start(node, 2, before=taken(node, 100))
    assert codes(node, daemons)[0] == 70, say(node, daemons)
    assert "starting again would not mend that" in say(node, daemons)
