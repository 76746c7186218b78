"""The node daemon as it is in life: a process around processes, which die in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from autoresume.node.daemon import adopt
from tests.node.fake_rank import content
from tests.node.harness import STOP_SIGNALS, Node, child_of, told, wait_until

SLEEPER = "import time; time.sleep(600)"


def signal_daemon(node: Node, daemon: subprocess.Popen[str], number: int) -> None:
    os.kill(daemon.pid, number)


def signal_group(node: Node, daemon: subprocess.Popen[str], number: int) -> None:
    os.killpg(daemon.pid, number)


def signal_launcher(node: Node, daemon: subprocess.Popen[str], number: int) -> None:
    child_of(daemon, "fake_launcher.py").send_signal(number)


def signal_rank(node: Node, daemon: subprocess.Popen[str], number: int) -> None:
    os.kill(node.notes("began", rank=1)[0]["pid"], number)


# -- an end in peace --------------------------------------------------------------------------------


def test_a_run_that_comes_to_its_end_is_finished(node: Node) -> None:
    """Exit code 0, the last state is committed, the record says finished, nothing is left anywhere."""
    ended = node.run("--steps", 25, "--save-every", 10, ranks=2)
    assert ended.code == 0, ended.err
    assert node.steps_saved() == [25, 20, 10]
    assert node.ended() == ("finished", 25, "the script came to its end")
    node.assert_nothing_is_left()


def test_old_checkpoints_are_pruned_as_the_script_wants_it(node: Node) -> None:
    """The daemon keeps as many as the option `keep` says."""
    assert node.run("--steps", 60, "--save-every", 10, "--keep", 2).code == 0
    assert node.steps_saved() == [60, 50]


# -- ranks that die ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("accident", "code"), [("kill", 137), ("exit", 9), ("segfault", 139)])
def test_what_a_rank_sealed_outlives_it(node: Node, accident: str, code: int) -> None:
    """A rank that dies right after it sealed a snapshot loses nothing of it, however it dies."""
    ended = node.run("--save-every", 10, "--accident", accident, "--at", 30)
    assert ended.code == code, ended.err
    newest = node.checkpoints()[0]
    assert newest.step == 30
    shard = node.storage.read(newest.shard(0))
    assert shard.endswith(content(0, 30))
    assert node.storage.read(newest.inside("pickles/rank-00000-buffer.pkl")) == b"cloud"
    assert node.ended() == ("died", 30, "rank 0 was killed, or crashed")
    node.assert_nothing_is_left()


def test_what_all_ranks_sealed_is_a_checkpoint_when_one_dies(node: Node) -> None:
    """One of two ranks is killed after both sealed: their snapshots are one committed checkpoint.

    The other rank, which waits for it in vain, is killed after a patience; the launcher's exit code counts.
    """
    ended = node.run(
        "--save-every", 10, "--accident", "kill", "--at", 20, "--rank", 1, "--lockstep", ranks=2, manner="deaf"
    )
    assert ended.code == 1, ended.err
    assert node.steps_saved() == [20, 10]
    assert node.ended()[::2] == ("died", "rank 1 was killed, or crashed")
    assert any("the ranks are killed: a rank died" in line for line in told(ended))
    node.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("accident", "how", "why"),
    [("fail", "failed", "ValueError: loss is nan"), ("kill", "died", "rank 1 was killed, or crashed")],
)
def test_a_failure_is_no_interruption(node: Node, accident: str, how: str, why: str) -> None:
    """torchrun sends SIGTERM to the other ranks when one fails: that signal is no preemption, and the code not 75.

    Otherwise a script that fails always is started again for ever.
    """
    ended = node.run("--accident", accident, "--at", 10, "--rank", 1, ranks=2)
    assert (ended.code, node.ended()[::2]) == (1, (how, why)), ended.err
    node.assert_nothing_is_left()


def test_ranks_that_are_started_again_in_place_go_on(node: Node) -> None:
    """A launcher may start new ranks after a death: a new incarnation under the same daemon, greeted and watched."""
    ended = node.run(
        "--steps", 30, "--save-every", 10, "--accident", "kill", "--at", 20, ranks=1, restarts=1, manner="deaf"
    )
    assert ended.code == 0, ended.err
    assert node.ended(1) == ("died", 20, "rank 0 was killed, or crashed")
    assert node.ended(2) == ("finished", 30, "the script came to its end")
    assert [str(name) for name in node.checkpoints()[:2]] == ["E0_U30_S300-0002", "E0_U20_S200-0002"]
    node.assert_nothing_is_left()


def test_ranks_that_torchrun_starts_again_in_place_go_on(node: Node) -> None:
    """Also if the launcher ended the surviving ranks with SIGTERM, as torchrun does."""
    ended = node.run("--steps", 300, "--accident", "kill", "--at", 20, "--rank", 1, ranks=2, restarts=1)
    assert ended.code == 0, ended.err
    assert node.ended(2) == ("finished", 300, "the script came to its end")
    node.assert_nothing_is_left()


def test_processes_that_ranks_left_behind_are_ended(node: Node) -> None:
    """A child that a rank started in a session of its own does not outlive the daemon."""
    ended = node.run("--steps", 20, "--accident", "child", "--at", 10, ranks=1)
    assert ended.code == 0, ended.err
    assert node.notes("accident")
    node.assert_nothing_is_left()


# -- signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("send", "number"),
    [
        *[(signal_daemon, number) for number in STOP_SIGNALS],
        (signal_group, signal.SIGTERM),
        (signal_launcher, signal.SIGTERM),
        (signal_rank, signal.SIGTERM),
        (signal_rank, signal.SIGUSR1),
    ],
    ids=lambda value: value.__name__ if callable(value) else signal.Signals(value).name,
)
def test_a_signal_stops_all_ranks_at_one_step(node: Node, send: object, number: int) -> None:
    """Whichever process it reaches: both ranks save and leave at the same step, which is committed; exit code 75."""
    daemon = node.start(node.command("--save-every", 10, ranks=2))
    wait_until(lambda: node.steps_are_made(ranks=2), what="both ranks to train")
    assert callable(send)
    send(node, daemon, number)
    ended = node.wait(daemon)
    assert ended.code == 75, ended.err
    ((step, order),) = node.acted(0)
    assert order == "STOP"
    assert node.acted(1) == [(step, order)]
    assert node.checkpoints()[0].step == step
    why = "a signal to stop reached a rank" if send is signal_rank else f"{signal.Signals(number).name} received"
    assert node.ended() == ("interrupted", step, why)
    node.assert_nothing_is_left()


def test_a_second_signal_changes_nothing(node: Node) -> None:
    """Signals that follow the first one, to whomever, neither hurry nor break anything."""
    daemon = node.start(node.command("--save-every", 10, "--pause", "0.05", ranks=2))
    wait_until(lambda: node.steps_are_made(ranks=2), what="both ranks to train")
    daemon.terminate()
    wait_until(lambda: "SIGTERM received" in node.err(daemon), what="the daemon to say so")
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2):
        signal_group(node, daemon, number)
    signal_rank(node, daemon, signal.SIGTERM)
    ended = node.wait(daemon)
    assert ended.code == 75, ended.err
    assert node.acted(0) == node.acted(1) == [(node.checkpoints()[0].step, "STOP")]
    assert node.ended()[::2] == ("interrupted", "SIGTERM received")
    assert len([line for line in told(ended) if "the ranks stop at a common step" in line]) == 1
    node.assert_nothing_is_left()


def test_ranks_that_hang_are_killed_before_the_deadline(node: Node) -> None:
    """A rank that never comes to the common step does not cost what all had sealed before."""
    arguments = ["--save-every", 5, "--accident", "hang", "--at", 7, "--lockstep"]
    daemon = node.start(node.command(*arguments, ranks=2, grace=5.0))
    wait_until(lambda: node.notes("accident"), what="rank 0 to hang")
    sent = time.monotonic()
    daemon.terminate()
    ended = node.wait(daemon)
    assert ended.code == 75, ended.err
    assert time.monotonic() - sent < 5.0
    assert node.steps_saved() == [5]
    assert node.ended()[::2] == ("interrupted", "SIGTERM received")
    assert any("the ranks are killed: the deadline is near" in line for line in told(ended))
    node.assert_nothing_is_left()


def test_ranks_that_have_not_begun_are_killed_at_once(node: Node) -> None:
    """Before the first step there is nothing to save: the grace time is not waited for."""
    daemon = node.start(node.command("--hang-at-start", ranks=2, grace=60.0))
    wait_until(lambda: node.notes("hangs", 0) and node.notes("hangs", 1), what="the ranks to be welcome")
    daemon.terminate()
    ended = node.wait(daemon)
    assert ended.code == 75, ended.err
    assert ended.seconds < 20
    assert node.ended()[::2] == ("interrupted", "SIGTERM received")
    node.assert_nothing_is_left()


def test_a_command_that_never_greets_is_killed_at_once(node: Node) -> None:
    """Nor is it waited for while ranks import their libraries: they have not even said hello."""
    daemon = node.start(node.daemon(sys.executable, "-c", SLEEPER, str(node.folder), grace=60.0))
    child_of(daemon, SLEEPER)
    daemon.terminate()
    ended = node.wait(daemon)
    assert (ended.code, ended.seconds < 20) == (75, True), ended.err
    node.assert_nothing_is_left()


def test_ctrl_c_is_the_scripts(node: Node) -> None:
    """SIGINT is handed on, and ends the script as it would without us; nothing is left."""
    daemon = node.start(node.command("--save-every", 10))
    wait_until(node.steps_are_made, what="the rank to train")
    daemon.send_signal(signal.SIGINT)
    ended = node.wait(daemon)
    assert ended.code == 130, ended.err
    assert "KeyboardInterrupt" in ended.err
    assert node.steps_saved()
    node.assert_nothing_is_left()


def test_steps_may_be_as_short_as_they_like(node: Node) -> None:
    """Ranks that make thousands of steps while the daemon proposes one are stopped at a step, too, not killed."""
    daemon = node.start(node.command("--pause", 0, "--accident", "none", "--at", 1000, grace=5.0))
    wait_until(lambda: node.notes("accident"), what="the rank to have made a thousand steps")
    daemon.terminate()
    ended = node.wait(daemon)
    assert ended.code == 75, ended.err
    assert [order for _, order in node.acted()] == ["STOP"], ended.err


# -- saves that a rank wishes -----------------------------------------------------------------------


@pytest.mark.parametrize("skew", [0, 0.03])
def test_a_save_that_is_due_is_taken_once_by_all(node: Node, skew: float) -> None:
    """Rank 0 says at each boundary that a save is due, until it is taken: that is one save, and all ranks take it.

    Whether the ranks come to their boundaries together, or one well after the other.
    """
    arguments = ["--steps", 30, "--wish", "once", "--at", 10, "--lockstep", "--pause", "0.01", "--keep", 100]
    ended = node.run(*arguments, "--skew", skew, ranks=2)
    assert ended.code == 0, ended.err
    assert node.acted(0) == node.acted(1)
    assert [order for _, order in node.acted()] == ["SAVE"]
    assert node.steps_saved() == [30, node.acted()[0][0]]


def test_every_save_is_taken_by_all_or_none(node: Node) -> None:
    """With a save wished at each boundary: no rank ever saves alone, and each save is a committed checkpoint."""
    ended = node.run(
        "--steps", 50, "--wish", "always", "--at", 10, "--lockstep", "--skew", "0.002", "--keep", 1000, ranks=3
    )
    assert ended.code == 0, ended.err
    assert node.acted(0) == node.acted(1) == node.acted(2)
    assert set(node.steps_saved()) == {50, *(step for step, _ in node.acted())}


def test_a_stop_is_not_replaced_by_a_save(node: Node) -> None:
    """The signal comes while saves are due: the ranks stop all the same, at one step."""
    arguments = ["--wish", "always", "--at", 5, "--lockstep", "--pause", "0.05", "--skew", "0.05"]
    daemon = node.start(node.command(*arguments, ranks=2, grace=5.0))
    wait_until(lambda: node.notes("acted", 0), what="rank 0 to save")
    daemon.terminate()
    ended = node.wait(daemon)
    assert ended.code == 75, ended.err
    last = {rank: node.acted(rank)[-1] for rank in (0, 1)}
    assert last[0] == last[1], ended.err
    assert last[0][1] == "STOP"
    assert node.checkpoints()[0].step == last[0][0]


# -- exit codes -------------------------------------------------------------------------------------


def test_failing_before_the_first_step_has_a_code_of_its_own(node: Node) -> None:
    """70: starting again would mend nothing. After a step it is the command's own code."""
    failing = node.start(node.daemon(sys.executable, "-c", "raise SystemExit(3)", str(node.folder)))
    assert node.wait(failing).code == 70
    assert node.run("--accident", "fail", "--at", 1).code == 1
    assert node.ended() == ("failed", 1, "ValueError: loss is nan")
    node.assert_nothing_is_left()


def test_ranks_that_agreed_to_stop_among_themselves_are_interrupted(node: Node) -> None:
    """A rank that says that it was interrupted leaves torchrun with 0: the daemon's code is 75 nevertheless.

    That is how ranks of several nodes stop when the signal reached another node.
    """
    ended = node.run("--accident", "leave", "--at", 10, ranks=1)
    assert node.ended() == ("interrupted", 10, "asked to stop by another rank")
    assert ended.code == 75, ended.err


def test_a_command_that_is_not_there_is_named(node: Node) -> None:
    """A misspelt command is an error in words, and leaves nothing."""
    ended = node.wait(node.start(node.daemon("/no/such/program", str(node.folder))))
    assert ended.code not in (0, 75)
    assert "/no/such/program" in ended.err
    assert "Traceback" not in ended.err
    node.assert_nothing_is_left()


# -- daemons that die -------------------------------------------------------------------------------


def killed_daemon(node: Node, *arguments: object, persist: int = 1, ranks: int = 0) -> None:
    """A daemon is killed when it begins to persist for the nth time; its ranks are gone when this returns."""
    daemon = node.start(node.command(*arguments, ranks=ranks), AUTORESUME_FAILPOINT=f"daemon.persist:{persist}")
    assert node.wait(daemon).code == -signal.SIGKILL
    wait_until(lambda: not node.processes(), what="the ranks to end")
    assert any("sealed-" in name for name in node.in_memory())


@pytest.mark.parametrize("ranks", [0, 2])
def test_the_next_daemon_persists_what_a_killed_one_left(node: Node, ranks: int) -> None:
    """SIGKILL of the daemon itself ends its ranks, and loses no sealed snapshot: the next start persists them."""
    killed_daemon(node, "--save-every", 10, ranks=ranks)
    saved = [{note["step"] for note in node.notes("sealed", rank)} for rank in range(max(1, ranks))]
    assert node.steps_saved() == []
    following = node.start(node.daemon(sys.executable, "-c", "", str(node.folder)))
    ended = node.wait(following)
    assert ended.code == 0, ended.err
    assert set(node.steps_saved()) == set.intersection(*saved)
    assert any("a node daemon was killed here" in line for line in told(ended))
    node.assert_nothing_is_left()


def test_adopting_keeps_what_the_run_wants_to_keep(node: Node) -> None:
    """The checkpoints that `keep` protects are not pruned by a daemon that never heard of that option."""
    killed_daemon(node, "--save-every", 5, "--keep", 10, persist=6)
    before = node.steps_saved()
    assert len(before) == 5
    adopt(next(node.memory.iterdir()))
    assert node.steps_saved()[-5:] == before
    assert len(node.steps_saved()) > 5


def test_a_daemon_that_lives_is_not_adopted(node: Node) -> None:
    """Another daemon of this user on the same machine is left alone."""
    daemon = node.start(node.command("--save-every", 10))
    wait_until(node.steps_are_made, what="the rank to train")
    (root,) = node.memory.iterdir()
    adopt(root)
    assert list(root.glob("node-*"))
    daemon.terminate()
    assert node.wait(daemon).code == 75
    assert node.acted()


def test_what_a_dead_life_left_is_not_written_into_a_newer_one(node: Node) -> None:
    """If the run has been taken over meanwhile, its stale snapshots are thrown away, and nothing is written."""
    killed_daemon(node, "--save-every", 10)
    taken_over = node.record(1)
    taken_over.number = 2
    node.storage.create("incarnations/0002.json", taken_over.to_bytes())
    adopt(next(node.memory.iterdir()))
    assert node.steps_saved() == []
    assert node.storage.list("checkpoints") == []
    node.assert_nothing_is_left()


def test_rubbish_in_memory_stops_nobody(node: Node) -> None:
    """A folder whose daemon can't be read, and one that has no owner for long, are cleared away; a young one stays."""
    assert node.run("--steps", 3).code == 0
    (root,) = node.memory.iterdir()
    for name in ("node-1-unreadable", "node-2-old", "node-3-young"):
        (root / name).mkdir()
        (root / name / "arena-00000").write_bytes(b"x")
    (root / "node-1-unreadable" / "daemon.json").write_text('{"pid"')
    os.utime(root / "node-2-old", (1, 1))
    adopt(root)
    assert [path.name for path in root.iterdir()] == ["node-3-young"]


# -- several nodes ----------------------------------------------------------------------------------


def test_a_signal_while_nodes_are_missing(node: Node) -> None:
    """A job that is preempted before all its nodes have come was interrupted, and asks for its requeue as any other."""
    meeting = node.folder / "meet"
    command = [
        sys.executable,
        "-m",
        "autoresume",
        "node",
        "--nodes",
        "2",
        "--node-rank",
        "0",
        "--meeting",
        str(meeting),
    ]
    daemon = node.start([*command, "--", sys.executable, "-c", SLEEPER, str(node.folder)])
    wait_until((meeting / "coordinator.json").exists, what="the first node to wait")
    daemon.terminate()
    ended = node.wait(daemon)
    assert ended.code == 75, ended.err
    assert "signal; the same command goes on from the last checkpoint" in ended.err
    assert not (meeting / "coordinator.json").exists()
    node.assert_nothing_is_left()
