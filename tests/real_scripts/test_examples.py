"""The four examples: what they promise on the page is true."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from autoresume.checkpoint.discover import newest_step
from autoresume.restore import diff
from autoresume.storage.local import LocalStorage
from tests import warm
from tests.real_scripts.harness import INTERRUPTED, Place, Stage, environment

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = {"ddp_classifier": 6, "nanogpt_style": 7, "gan": 6, "rl": 5}
"""Import, decorator, signature, track, loop, and the step where the loop has none; without a main function other
variables' state comes on top."""
PATIENCE_SECONDS = 90.0


def make_docs() -> Any:
    found = importlib.util.spec_from_file_location("make_docs", EXAMPLES / "make_docs.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", LINES)
def test_few_lines_are_enough(name: str) -> None:
    """An ordinary script becomes preemption-proof by about 5 added or changed lines; what was deleted counts, too."""
    docs = make_docs()
    assert docs.changed_lines(*docs.read(name)) <= LINES[name]


def test_each_example_is_counted() -> None:
    assert set(make_docs().PARAGRAPHS) == set(LINES)


def test_the_page_is_up_to_date() -> None:
    """docs/examples.md shows the examples as they are."""
    docs = make_docs()
    assert docs.PAGE.read_text() == docs.page(), "run examples/make_docs.py"


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.pt")}


def run_of(folder: Path) -> Path:
    (found,) = folder.glob("runs/*")
    return found


def ended(folder: Path) -> list[str]:
    """How each incarnation ended."""
    records = sorted(run_of(folder).glob("incarnations/*.json"))
    return [(json.loads(path.read_text())["ended"] or {"how": "unknown"})["how"] for path in records]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"after {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.005)


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max((newest_step(LocalStorage(run)) for run in folder.glob("runs/*")), default=0)


def interrupt_at(folder: Path, step: int, interrupt: Callable[[], None], alive: Callable[[], bool]) -> None:
    """Interrupt as soon as a checkpoint shows `step`, the script being in the middle of its work."""
    wait_until(lambda: last_step(folder) >= step or not alive(), f"step {step} was not seen")
    said = "\n".join(path.read_text() for path in folder.glob("log"))
    assert alive(), f"it ended by itself:\n{said}"
    assert not weights(folder), "the script was quicker than its interruption"
    interrupt()


@pytest.mark.parametrize(
    ("name", "arguments", "save_every", "steps"),
    [("gan", [], "8", (24, 120)), ("nanogpt_style", ["max_iters=70", "eval_interval=20"], "3", (9, 30))],
)
def test_interrupted_example(
    stage: Stage, name: str, arguments: list[str], save_every: str, steps: tuple[int, int]
) -> None:
    """Stopped by SIGTERM, then killed, then left alone: the same state and weights as undisturbed; and those are
    the weights of the script without autoresume. An interrupted run saves no final model."""
    whole, torn, plain = stage.place("whole"), stage.place("torn"), stage.place("plain")
    script = str(EXAMPLES / name / "after.py")
    assert plain.run(str(EXAMPLES / name / "before.py"), *arguments).code == 0
    assert whole.run(script, *arguments).code == 0
    assert weights(plain.folder) == weights(whole.folder) != {}
    for number, step, code in ((signal.SIGTERM, steps[0], INTERRUPTED), (signal.SIGKILL, steps[1], -signal.SIGKILL)):
        started = torn.start(script, *arguments, AUTORESUME_SAVE_EVERY=save_every)
        interrupt_at(
            torn.folder, step, lambda n=number, s=started: os.kill(s.pid, n), lambda s=started: psutil.pid_exists(s.pid)
        )
        assert torn.wait(started).code == code
        assert not weights(torn.folder)
    assert torn.run(script, *arguments, AUTORESUME_SAVE_EVERY=save_every).code == 0
    same(whole, torn)
    assert ended(torn.folder) == ["interrupted", "died", "finished"]


def state(place: Place) -> dict[str, Any]:
    """Of the last checkpoint: what is tracked, what is in run.state, and torch's generators, of each rank. (A last
    checkpoint is taken behind the loop, or in its last turn if one was due there: so much its positions tell.)"""
    values = diff.read_values(str(run_of(place.folder)))
    return {name: value for name, value in values.items() if "run/" not in name or "run/rng/torch" in name}


def same(whole: Place, torn: Place) -> None:
    assert weights(torn.folder) == weights(whole.folder) != {}
    one, other = state(whole), state(torn)
    assert any("run/rng/torch" in name for name in one)
    assert diff.compare(one, other) == []


class Command:
    """A command as a user types it, in a place's folder."""

    def __init__(self, folder: Path, *command: str, cold: bool = False, **variables: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.log = open(folder / "log", "ab")
        start = subprocess.Popen if cold else warm.Popen
        words = [sys.executable, *command]
        self.process = start(words, cwd=folder, env=environment(**variables), stdout=self.log, stderr=self.log)

    def alive(self) -> bool:
        return self.process.poll() is None

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill_all(self) -> None:
        """The machine is gone: the command and all that it started."""
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for member in family:
            member.kill()

    def kill_one_rank(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        ranks = [child for child in children if child.environ().get("RANK") == "1"]
        ranks[0].kill()

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE_SECONDS)
        finally:
            self.log.close()


@pytest.mark.timeout(400)
def test_interrupted_command(stage: Stage) -> None:
    """`python after.py`, as typed: stopped, killed, and started again with the same command, it goes on bit for bit."""
    whole, torn = stage.place("whole"), stage.place("torn")
    script = str(EXAMPLES / "rl" / "after.py")
    assert whole.run(script).code == 0
    assert whole.run(str(EXAMPLES / "rl" / "before.py")).out.splitlines() == whole.ended[0].out.splitlines()
    torn.folder.mkdir()

    def start() -> Command:
        return Command(torn.folder, script, cold=True, AUTORESUME_SAVE_EVERY="100")

    first = start()
    interrupt_at(torn.folder, 500, first.terminate, first.alive)
    assert first.wait() == INTERRUPTED
    second = start()
    interrupt_at(torn.folder, 1200, second.kill_all, second.alive)
    assert second.wait() == -signal.SIGKILL
    assert start().wait() == 0
    same(whole, torn)


def ddp(place: Place, script: str) -> Place:
    """A script of the classifier's, on two ranks, undisturbed."""
    assert {ended.code for ended in place.run_ranks(2, str(EXAMPLES / "ddp_classifier" / script))} == {0}
    return place


@pytest.mark.timeout(400)
def test_torchrun(stage: Stage) -> None:
    """`torchrun --nproc-per-node 2 after.py`: SIGTERM to torchrun stops both ranks at one step (its own exit code
    is 1, the run's record says interrupted); killed with all its ranks, it goes on from a checkpoint of both. The end
    is that of the script without autoresume."""
    whole, plain, torn = (
        ddp(stage.place("whole"), "after.py"),
        ddp(stage.place("plain"), "before.py"),
        stage.place("torn"),
    )
    assert weights(plain.folder) == weights(whole.folder) != {}
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command = [*torchrun, "--rdzv-endpoint=localhost:0", str(EXAMPLES / "ddp_classifier" / "after.py")]

    def start() -> Command:
        return Command(torn.folder, *command, AUTORESUME_SAVE_EVERY="8")

    first = start()
    interrupt_at(torn.folder, 16, first.terminate, first.alive)
    assert first.wait() == 1
    assert ended(torn.folder) == ["interrupted"]
    second = start()
    interrupt_at(torn.folder, 120, second.kill_all, second.alive)
    assert second.wait() == -signal.SIGKILL
    assert start().wait() == 0
    same(whole, torn)
    assert ended(torn.folder) == ["interrupted", "died", "finished"]


@pytest.mark.timeout(400)
def test_autoresume_run(stage: Stage) -> None:
    """`autoresume run --nproc 2 after.py`: SIGTERM makes it leave with 75, resumable; a rank that is killed is
    started again with the other by itself; and the end is the same."""
    whole, torn = ddp(stage.place("whole"), "after.py"), stage.place("torn")
    script = str(EXAMPLES / "ddp_classifier" / "after.py")

    def start() -> Command:
        return Command(torn.folder, "-m", "autoresume", "run", "--nproc", "2", script, AUTORESUME_SAVE_EVERY="8")

    first = start()
    interrupt_at(torn.folder, 16, first.terminate, first.alive)
    assert first.wait() == INTERRUPTED
    second = start()
    interrupt_at(torn.folder, 120, second.kill_one_rank, second.alive)
    assert second.wait() == 0
    same(whole, torn)
    assert ended(torn.folder) == ["interrupted", "died", "finished"]
