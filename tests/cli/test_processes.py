"""The command line as a process: messages, exit codes, and `autoresume run` around real jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.runs import FakeRun
from tests.node.conftest import memory  # noqa: F401  (a fixture)
from tests.node.harness import Ended, Node, child_of, wait_until

FAKE_RANK = Path(__file__).parents[1] / "node" / "fake_rank.py"


@pytest.fixture
def node(tmp_path: Path, memory: Path) -> Iterator[Node]:  # noqa: F811
    made = Node(tmp_path, memory)
    yield made
    made.close()


def call(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoresume", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60)


def test_errors_are_words(tmp_path: Path) -> None:
    """No traceback: one line on standard error, nothing on standard output, exit code 1."""
    FakeRun(tmp_path / "gpt")
    done = call("ls", tmp_path / "gtp")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"autoresume: {tmp_path}/gtp is no run directory: it holds no run.json. Runs nearby: {tmp_path}/gpt.\n"
    )


def test_the_output_can_be_piped(tmp_path: Path) -> None:
    """JSON lines for programs; verify's exit code says whether all is whole."""
    run = FakeRun(tmp_path / "gpt")
    run.damage(run.checkpoint(100).shard(0))
    listed = call("ls", run.folder, "--json")
    assert json.loads(listed.stdout)["step"] == 100
    verified = call("verify", run.folder, "--json")
    assert (verified.returncode, json.loads(verified.stdout)["valid"]) == (1, False)
    assert call("--version").stdout.startswith("autoresume, version ")


# -- autoresume run ---------------------------------------------------------------------------------


def autoresume_run(node: Node, *arguments: object) -> subprocess.Popen[str]:
    return node.start([sys.executable, "-m", "autoresume", "run", *map(str, arguments)])


def script(node: Node, text: str) -> Path:
    """A script that gets the node's folder as its argument, and counts its lives in a file there."""
    path = node.folder / "train.py"
    path.write_text(
        "import os, signal, sys, time\nfrom pathlib import Path\nlives = Path(sys.argv[1]) / 'lives'\n"
        "lives.open('a').write('x')\nlife = len(lives.read_text())\n" + text
    )
    return path


def lives(node: Node) -> int:
    return len((node.folder / "lives").read_text())


def said(ended: Ended) -> str:
    return "\n".join(line for line in ended.err.splitlines() if line.startswith("autoresume"))


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Nothing is started."""
    done = call("run", "trian.py", "--lr", "3", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"autoresume: there is no script 'trian.py' in {tmp_path}\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--nproc", "0"], "--nproc 0: at least one rank trains"),
        (["--preempt-after", "soon"], "--preempt-after 'soon': give seconds"),
        (["--preempt-after", "-3"], "seconds can't be negative"),
        (["--preempt-signal", "SIGFOO"], "unknown signal 'SIGFOO'"),
    ],
)
def test_wrong_options_are_words(tmp_path: Path, arguments: list[str], hint: str) -> None:
    """Each wrong value is named before anything is started."""
    (tmp_path / "train.py").write_text("raise SystemExit('it ran')")
    done = call("run", *arguments, "train.py", folder=tmp_path)
    assert done.returncode == 1
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_gets_its_arguments(node: Node) -> None:
    """What follows the script is the script's, options that look like ours among them."""
    path = script(node, "print(sys.argv[1:])")
    ended = node.wait(autoresume_run(node, path, node.folder, "--grace", "5", "--", "-x"))
    assert ended.code == 0, ended.err
    assert str([str(node.folder), "--grace", "5", "--", "-x"]) in ended.err
    node.assert_nothing_is_left()


def test_a_preempted_job_is_started_again(node: Node) -> None:
    """Preempted by a signal of choice, however early, the job lives again; preempted from outside, it ends with 75."""
    arguments = ["--folder", node.folder, "--save-every", 20]
    process = autoresume_run(node, "--preempt-after", "1.0", "--preempt-signal", "USR2", FAKE_RANK, *arguments)
    wait_until(lambda: "starting again" in node.err(process), what="the preemption")
    before = len(node.notes("sealed"))
    wait_until(lambda: len(node.notes("sealed")) > before, what="the next life to train")
    process.terminate()
    ended = node.wait(process)
    assert ended.code == 75, ended.err
    assert "preempting: SIGUSR2, and 30 s of grace" in said(ended)
    *others, last = node.notes("began")
    assert node.ended(last["number"])[::2] == ("interrupted", "SIGTERM received")
    assert [node.ended(one["number"])[::2] for one in others] == [("interrupted", "SIGUSR2 received")] * len(others)
    assert len(others) <= 1
    node.assert_nothing_is_left()


def test_crashes_in_a_row_are_counted(node: Node) -> None:
    """A job that crashes after it trained is started again so many times, and no more; its own code is the end."""
    arguments = ["--folder", node.folder, "--accident", "exit", "--at", 3]
    ended = node.wait(autoresume_run(node, "--max-restarts", 2, FAKE_RANK, *arguments))
    assert ended.code == 9, ended.err
    assert len(node.notes("began")) == 3
    assert "failed with exit code 9, 3 times in a row" in said(ended)
    node.assert_nothing_is_left()


def test_a_script_that_fails_at_once_is_not_started_again(node: Node) -> None:
    """Before the first step a restart mends nothing: an import error is told once."""
    ended = node.wait(autoresume_run(node, script(node, "import no_such_module"), node.folder))
    assert (ended.code, lives(node)) == (1, 1), ended.err
    assert ended.err.count("No module named 'no_such_module'") == 1
    assert "it failed before its first step" in said(ended)


def test_a_job_that_was_killed_at_the_deadline_is_not_finished(node: Node) -> None:
    """A daemon that hangs is killed with its ranks when the grace time is over: killing it is no exit code 0."""
    hang = script(node, "os.kill(os.getppid(), signal.SIGSTOP); time.sleep(600)")
    process = autoresume_run(node, "--grace", "1", hang, node.folder)
    daemon = child_of(process, "node")
    wait_until(lambda: daemon.status() == psutil.STATUS_STOPPED, what="the daemon to hang")
    process.terminate()
    ended = node.wait(process)
    assert "the grace time is over: killing the job" in said(ended)
    assert (ended.code != 0, lives(node)) == (True, 1), ended.err
    assert [one.cmdline() for one in node.processes()] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_from_outside_is_the_jobs(node: Node, number: int) -> None:
    """A real preemption of `autoresume run` itself: the ranks stop at a step, exit code 75, nothing is started."""
    process = autoresume_run(node, FAKE_RANK, "--folder", node.folder, "--save-every", 10)
    wait_until(node.steps_are_made, what="the rank to train")
    os.kill(process.pid, number)
    ended = node.wait(process)
    assert ended.code == 75, ended.err
    assert [order for _, order in node.acted()] == ["STOP"]
    assert len(node.notes("began")) == 1
    assert node.checkpoints()[0].step == node.acted()[0][0]
    node.assert_nothing_is_left()


def test_ctrl_c_ends_everything(node: Node) -> None:
    """SIGINT reaches the script; the job is not started again; nothing is left."""
    process = autoresume_run(node, FAKE_RANK, "--folder", node.folder, "--save-every", 10)
    wait_until(node.steps_are_made, what="the rank to train")
    process.send_signal(signal.SIGINT)
    ended = node.wait(process)
    assert ended.code not in (0, 75), ended.err
    assert len(node.notes("began")) == 1
    node.assert_nothing_is_left()


def test_a_daemon_that_is_killed_counts_as_a_crash(node: Node) -> None:
    """SIGKILL of the node daemon: what it left is settled by the next one, and training goes on."""
    process = autoresume_run(node, FAKE_RANK, "--folder", node.folder, "--save-every", 10, "--keep", 10**6)
    wait_until(node.steps_are_made, what="the rank to train")
    daemon = json.loads(next(node.memory.glob("*/node-*/daemon.json")).read_text())["pid"]
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: len(node.notes("began")) == 2, what="a second life")
    process.terminate()
    ended = node.wait(process)
    assert ended.code == 75, ended.err
    assert "failed with exit code 137 (1 of 3): starting again" in said(ended)
    sealed_before = max(note["step"] for note in node.notes("sealed") if note["name"].endswith("-0001"))
    assert f"E0_U{sealed_before}_S{sealed_before * 10}-0001" in node.storage.list("checkpoints")
    node.assert_nothing_is_left()
