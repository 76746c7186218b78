"""The demo: one training run that is left in peace, one that is preempted and killed, and a comparison.

`make demo` runs it. Everything happens through `autoresume run`, as a user would call it; the
interruptions are real signals to the real processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from rich.console import Console

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "demo-run"
EPOCHS = 3
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


class Training:
    """`autoresume run --nproc 2 gpt.py` in a run directory, watched from outside."""

    def __init__(self, folder: Path, title: str) -> None:
        self.folder, self.title = folder, title
        self.log = open(f"{folder}.log", "w")
        environment = {**os.environ, "AUTORESUME_RUN_DIR": str(folder), "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "autoresume",
            "run",
            "--nproc",
            "2",
            str(HERE / "gpt.py"),
            "--epochs",
            str(EPOCHS),
        ]
        self.process = psutil.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)
        self._said = 0.0

    def records(self) -> list[dict]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def step(self) -> int:
        found = self.records()
        return found[-1]["step"] if found else 0

    def lives(self) -> int:
        return len(list((self.folder / "incarnations").glob("????.json")))

    def wait_until(self, condition: Callable[[], bool], what: str, poll_seconds: float = 0.2) -> None:
        while not condition():
            if self.process.poll() is not None:
                raise SystemExit(f"the training ended before {what}; its log is {self.log.name}")
            self.show()
            time.sleep(poll_seconds)

    def show(self, every_seconds: float = 3.0) -> None:
        if time.monotonic() - self._said >= every_seconds and (found := self.records()):
            self._said = time.monotonic()
            loss = found[-1]["values"]["loss"]
            console.print(f"  {self.title}: step {found[-1]['step']:>3}, loss {loss:.3f}, incarnation {self.lives()}")

    def finish(self) -> None:
        while self.process.poll() is None:
            self.show()
            time.sleep(0.2)
        if self.process.returncode != 0:
            raise SystemExit(
                f"the training failed with exit code {self.process.returncode}; its log is {self.log.name}"
            )

    # -- who is who ---------------------------------------------------------------------------

    def daemon(self) -> psutil.Process:
        return next(child for child in self.process.children() if "node" in words(child))

    def ranks(self) -> list[psutil.Process]:
        launcher = next(child for child in self.daemon().children() if "autoresume.node.launcher" in words(child))
        return [child for child in launcher.children() if str(HERE / "gpt.py") in words(child)]

    def life_at(self, life: int, step: int) -> Callable[[], bool]:
        return lambda: self.lives() >= life and self.step() >= step


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended just now
        return []


def preempt(training: Training) -> None:
    console.print("[bold]1.[/] preempted: SIGTERM to the node daemon, as Slurm does it")
    training.wait_until(training.life_at(1, 60), "the preemption")
    training.daemon().send_signal(signal.SIGTERM)


def kill_while_saving(training: Training) -> None:
    console.print("[bold]2.[/] the node is lost in the middle of a save: SIGKILL to the daemon and all ranks")
    while True:
        training.wait_until(training.life_at(2, 80), "the kill")
        training.wait_until(lambda: bool(half_written(training.folder)), "the kill", poll_seconds=0.001)
        saving = half_written(training.folder)
        daemon = training.daemon()
        for process in [daemon, *daemon.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # ranks end with their daemon
                process.kill()
        if saving and not (saving[0] / "manifest.json").exists():
            console.print(f"   {saving[0].name} was half written: it must not be used")
            return


def half_written(folder: Path) -> list[Path]:
    return sorted({path.parent.parent for path in folder.glob("checkpoints/*/shards/*.tmp")})


def kill_a_rank(training: Training) -> None:
    console.print("[bold]3.[/] one rank is killed in the middle of an epoch: SIGKILL to rank 1")
    training.wait_until(training.life_at(3, 160), "the kill")
    training.ranks()[1].kill()


def signal_a_rank(training: Training) -> None:
    console.print("[bold]4.[/] a signal that reaches one rank alone: SIGUSR1 to rank 1")
    training.wait_until(training.life_at(4, 230), "the signal")
    training.ranks()[1].send_signal(signal.SIGUSR1)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    began = time.monotonic()
    console.rule("A small GPT on the standard library's source, 2 ranks (DDP)")
    calm = Training(FOLDER / "uninterrupted", "uninterrupted")
    console.print(f"first without any interruption (log: {calm.log.name})")
    calm.finish()
    console.rule("The same command again, in another run directory, with interruptions")
    rough = Training(FOLDER / "interrupted", "interrupted")
    console.print(f"log: {rough.log.name}")
    for interruption in (preempt, kill_while_saving, kill_a_rank, signal_a_rank):
        interruption(rough)
    rough.finish()
    console.rule("What happened")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "autoresume", "history", str(rough.folder)], check=True)
    subprocess.run([sys.executable, "-m", "autoresume", "ls", str(rough.folder)], check=True)
    console.rule("Is it the same run?")
    same = compare(calm, rough)
    console.print(f"\ncheckpoints   {rough.folder}/checkpoints\nmetrics       {rough.folder}/metrics.jsonl")
    console.print(f"TensorBoard   tensorboard --logdir {FOLDER}\nlogs          {FOLDER}/*.log")
    console.print(f"took {time.monotonic() - began:.0f} s")
    sys.exit(0 if same else 1)


def compare(calm: Training, rough: Training) -> bool:
    one, other = calm.records(), rough.records()
    steps = [record["step"] for record in other]
    answers = {
        f"{len(one)} steps, each logged exactly once": steps == list(range(1, len(one) + 1)),
        "every loss and learning rate bit-identical": [r["values"] for r in one] == [r["values"] for r in other],
        "TensorBoard shows the same curve, each step once": tensorboard(calm.folder) == tensorboard(rough.folder),
        "final weights, optimizer, generators: files byte-identical": last_files(calm.folder)
        == last_files(rough.folder),
    }
    for what, right in answers.items():
        console.print(f"  {'[green]yes[/]' if right else '[red]NO[/] '}  {what}")
    console.print(f"  final loss {one[-1]['values']['loss']!r} and {other[-1]['values']['loss']!r}")
    return all(answers.values())


def tensorboard(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def last_files(folder: Path) -> dict[str, bytes]:
    """The tensor files of the last checkpoint: weights, optimizer and generators of each rank."""
    newest = max(
        folder.glob("checkpoints/*/manifest.json"), key=lambda path: int(path.parent.name.split("_U")[1].split("_")[0])
    )
    return {path.name: path.read_bytes() for path in sorted((newest.parent / "shards").iterdir())}


if __name__ == "__main__":
    main()
