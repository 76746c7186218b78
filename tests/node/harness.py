"""What the tests of the daemon, of the hand-off and of the command line share: real processes, and waiting for them.

Law: nothing sleeps to let something happen; `wait_until` looks until it has. A node has its own folder
in memory, and its own run, so that tests may run beside each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.discover import judge, list_checkpoints
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.checkpoint.verify import verify
from autoresume.format.names import CheckpointName
from autoresume.storage.local import LocalStorage
from tests import warm

T = TypeVar("T")

HERE = Path(__file__).parent
PATIENCE_SECONDS = 90.0


def is_gone(pid: int) -> bool:
    """Ended, whether anybody has waited for it or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(look: Callable[[], T], seconds: float = PATIENCE_SECONDS, what: str = "") -> T:
    """Look again and again until `look()` gives something true, and return that; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        found = look()
        if found:
            return found
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what or look}")
        time.sleep(min(0.2, max(0.005, 3 * (now - began))))  # to look at all processes takes far longer than at a file


def environment(**more: str) -> dict[str, str]:
    """Ours, without what launchers, Slurm and autoresume read."""
    known = ("AUTORESUME_", "SLURM_", "TORCHELASTIC_", "FAKE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(known)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        kept.pop(name, None)
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def make_run(folder: Path, run_id: str = "fa4e4a4c0001") -> LocalStorage:
    """An empty run."""
    storage = LocalStorage(folder)
    storage.create("run.json", json.dumps({"format_version": 1, "run_id": run_id, "seed": 1, "loggers": {}}).encode())
    return storage


@dataclass
class Ended:
    code: int
    err: str
    seconds: float


@dataclass
class Node:
    """One node: a folder for notes and the run, and a folder in memory."""

    folder: Path
    memory: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.storage = make_run(self.folder / "run")

    # -- starting and ending ----------------------------------------------------------------------

    def command(
        self, *arguments: Any, ranks: int = 0, grace: float = 20.0, restarts: int = 0, manner: str = "strict"
    ) -> list[str]:
        """`autoresume node` around one fake rank, or, with `ranks`, around the fake launcher."""
        launch = [sys.executable, str(HERE / "fake_rank.py")]
        if ranks:
            launch = [sys.executable, str(HERE / "fake_launcher.py"), str(ranks), str(restarts), manner]
        launch += ["--folder", str(self.folder), *map(str, arguments)]
        return self.daemon(*launch, ranks=max(1, ranks), grace=grace)

    def daemon(self, *launch: str, ranks: int = 1, grace: float = 20.0) -> list[str]:
        node = [sys.executable, "-m", "autoresume", "node", "--ranks", str(ranks), "--grace", str(grace), "--"]
        return [*node, *launch]

    def start(self, command: list[str], **variables: str) -> subprocess.Popen[str]:
        """Start a daemon in a process group of its own."""
        log = open(self.folder / f"err-{len(self.started)}", "w")
        process = warm.Popen(
            command,
            env=environment(AUTORESUME_MEMORY=str(self.memory), **variables),
            cwd=self.folder,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        log.close()
        self.started.append(process)
        return process

    def wait(self, process: subprocess.Popen[str], seconds: float = PATIENCE_SECONDS) -> Ended:
        began = time.monotonic()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon did not end within {seconds:.0f} s:\n{self.err(process)}") from None
        return Ended(code, self.err(process), time.monotonic() - began)

    def run(self, *arguments: Any, **options: Any) -> Ended:
        return self.wait(self.start(self.command(*arguments, **options)))

    def err(self, process: subprocess.Popen[str]) -> str:
        return (self.folder / f"err-{self.started.index(process)}").read_text()

    def close(self) -> None:
        """End what a failed test left."""
        for process in [*self.processes(), *self.started]:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                process.kill()
        for process in self.started:
            process.wait()

    # -- looking ----------------------------------------------------------------------------------

    def notes(self, what: str, rank: int = 0) -> list[dict[str, Any]]:
        """What a rank wrote down of that kind."""
        path = self.folder / f"rank-{rank}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [note for note in found if note["what"] == what]

    def acted(self, rank: int = 0) -> list[tuple[int, str]]:
        return [(note["step"], note["order"]) for note in self.notes("acted", rank)]

    def steps_are_made(self, ranks: int = 1) -> bool:
        """True once every rank has sealed something: all of them train."""
        return all(self.notes("sealed", rank) for rank in range(ranks))

    def checkpoints(self) -> list[CheckpointName]:
        """What is committed, newest first; every byte of it is right."""
        found = []
        for name in list_checkpoints(self.storage):
            if judge(self.storage, name, "fa4e4a4c0001").committed:
                problem = verify(self.storage, name, "fa4e4a4c0001")
                assert problem is None, f"{name}: {problem}"
                found.append(name)
        return found

    def steps_saved(self) -> list[int]:
        return [name.step for name in self.checkpoints()]

    def record(self, number: int = 1) -> Incarnation:
        return incarnation.read(self.storage, number)

    def ended(self, number: int = 1) -> tuple[str, int | None, str]:
        """(how, step, why) of an incarnation's end."""
        value = self.record(number).ended
        assert value is not None, f"how incarnation {number} ended is not written down"
        return value["how"], value["step"], value["why"]

    def processes(self) -> list[psutil.Process]:
        """All living processes that belong to this test: its folder is among their arguments."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = str(self.folder) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            found += [process] if mine else []
        return found

    def in_memory(self) -> list[str]:
        """Everything in the node's memory."""
        return sorted(str(path.relative_to(self.memory)) for path in self.memory.rglob("*") if path.is_file())

    def assert_nothing_is_left(self) -> None:
        assert [process.cmdline() for process in self.processes()] == []
        assert self.in_memory() == []
        assert list(self.memory.glob("*/node-*")) == []


def told(ended: Ended) -> list[str]:
    """What the daemon said, without Python's tracebacks of ranks."""
    return [line for line in ended.err.splitlines() if line.startswith("autoresume node: ")]


def child_of(process: subprocess.Popen[str], script: str) -> psutil.Process:
    """The descendant that runs `script`, once there is one."""

    def look() -> list[psutil.Process]:
        found = psutil.Process(process.pid).children(recursive=True)
        return [child for child in found if any(script in word for word in child.cmdline())]

    return wait_until(look, what=f"a process that runs {script}")[0]


STOP_SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
