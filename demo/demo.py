"""The demo: one training run that is left in peace, one that is preempted and killed, and a comparison.

Law: everything happens through `autoresume run`, as a user would call it, and each interruption is a real signal to
real processes, sent while the training waits at its place. What is said is what was found. Whatever happens, one line
says it, and no process and no file in memory is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from autoresume.checkpoint import incarnation
from autoresume.cli import history
from autoresume.node import processes
from demo import comparison, picture
from demo.training import Failed, Training

FOLDER = Path(__file__).resolve().parent.parent / "demo-run"
NEEDED_BYTES = 200 * 10**6
PREEMPTED_AT, KILLED_AT, SIGNALLED_AT, STOPPING_AT = 42, 110, 130, 135
SAVE_EVERY = 20
"""As gpt.py has it."""
IN_A_SAVE = "persist.shard_written:4"
"""In the second save of a life, when both ranks' tensors are on disk, and nobody can have committed them."""
ENDS = (
    "preempted: SIGTERM to the node daemon",
    "everything killed in the middle of a save",
    "rank 1 killed",
    "SIGUSR1 to rank 1 alone",
    "to the end",
)
_IMPORTS = 45
"""The whole demo takes so many times as long as to import torch."""
_KILLED = 128 + signal.SIGKILL
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MADE = ("interrupted*", "uninterrupted*", "curves.png", "demo.log")

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110, soft_wrap=True)


def main() -> NoReturn:
    """Never returns: the exit code is 0 if both runs are the same."""
    folder = Path(os.environ.get("DEMO_FOLDER", FOLDER)).resolve()
    code, memory, last = 1, None, ""
    processes.become_subreaper()
    for number in _ENDING:
        signal.signal(number, _leave)
    try:
        memory = _prepare(folder)
        if show(folder, memory):
            code = 0
        else:
            last = f"the two runs are not the same: please report it, with {folder}"
    except Failed as failed:
        last = str(failed)
    except SystemExit as stopped:
        code = int(stopped.code or 1)
        last = f"stopped by {signal.Signals(code - 128).name}; nothing is left running"
    except OSError as error:
        last = f"{error.strerror or error}: {error.filename or folder}"
    except Exception as error:  # noqa: BLE001  (a newcomer is shown one line)
        (folder / "demo.log").write_text(traceback.format_exc())
        last = f"{type(error).__name__}: {error}; please report it, with {folder}/demo.log"
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        processes.kill_tree()
        if memory is not None:
            shutil.rmtree(memory, ignore_errors=True)
    if last:
        with contextlib.suppress(OSError):  # nobody may be listening any more
            console.print("[bold red]demo:[/]", Text(last))
    sys.exit(code)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _prepare(folder: Path) -> Path:
    """Remove what an earlier demo left. A folder in memory, which no other daemon of this user looks into."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for made in [path for pattern in _MADE for path in folder.glob(pattern)]:
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    except PermissionError as error:
        raise Failed(f"{error.filename} can't be removed by you: remove {folder} as the user who made it") from None
    for place in (folder, Path(tempfile.gettempdir())):
        free = shutil.disk_usage(place).free
        if free < NEEDED_BYTES:
            needed = f"{NEEDED_BYTES / 1e6:.0f} MB are needed"
            raise Failed(f"{place} has {free / 1e6:.0f} MB free, and {needed}: free some")
    shared = Path("/dev/shm")  # noqa: S108  (what is made there is private)
    return Path(tempfile.mkdtemp(prefix="autoresume-demo-", dir=shared if os.access(shared, os.W_OK) else None))


def show(folder: Path, memory: Path) -> bool:
    """All of it. Whether both runs are the same."""
    began = time.monotonic()
    console.rule("A small GPT learns to write Python: 2 ranks (DDP), on the CPU")
    console.print(f"this takes about {_in_words(_IMPORTS * _import_seconds())} on this machine, as busy as it is now")
    calm = Training(folder / "uninterrupted", memory, console)
    console.print(
        f"\n[bold]First without any interruption[/]: autoresume run --nproc 2 demo/gpt.py   (log: {calm.log})"
    )
    calm.start()
    calm.end()
    console.print(f"   finished after {time.monotonic() - began:.0f} s")
    rough = Training(folder / "interrupted", memory, console)
    console.print(f"\n[bold]The same again, with four interruptions[/]   (log: {rough.log})")
    interrupt(rough)
    console.rule("What happened")
    for command in ("history", "ls"):
        _autoresume(command, rough.folder)
    console.rule("Is it the same run?")
    one, other = calm.records(), rough.records()
    found = comparison.answers(calm.folder, rough.folder, one, other)
    for what, right in found.items():
        console.print(f"  {'[green]yes[/]' if right else '[bold red]NO[/] '}  {what}")
    console.print(f"  final loss {one[-1]['values']['loss']!r} and {other[-1]['values']['loss']!r}\n")
    _draw(folder / "curves.png", calm, rough)
    console.print(f"picture       {folder}/curves.png\nmetrics       {rough.folder}/metrics.jsonl")
    console.print(
        f"TensorBoard   {Path(sys.executable).parent}/tensorboard --logdir {folder}\nlogs          {folder}/*.log"
    )
    console.print(f"took {_in_words(time.monotonic() - began)}")
    return all(found.values())


def interrupt(training: Training) -> None:
    """The four interruptions, one after the other."""
    console.print("[bold]1.[/] preempted: SIGTERM to the node daemon, as Slurm does it")
    training.plan("preempted", PREEMPTED_AT, rank=0)
    training.start("--once")

    def term(rank: int) -> None:
        os.kill(training.daemon(), signal.SIGTERM)

    step = training.interrupt("preempted", term, lambda: training.stops() > 0)
    training.end([75])
    console.print(f"   sent at step {step}: both ranks saved and left; exit code 75 says that the run can go on")

    console.print("[bold]2.[/] everything is killed in the middle of a save: SIGKILL to the daemon and to all below it")
    # The ranks wait two steps later, so that it is this save that is killed, and not one that follows.
    training.plan("saving", SAVE_EVERY * (training.saved_step() // SAVE_EVERY + 2) + 2, rank=0)
    training.start("--once", failpoint=IN_A_SAVE)
    training.hold("saving", lambda: False)
    training.end([_KILLED])
    torn = _torn(training)

    console.print("[bold]3.[/] one rank is killed in the middle of an epoch: SIGKILL to rank 1")
    training.plan("killed", KILLED_AT, rank=1)
    training.start()

    def kill(rank: int) -> None:
        used = training.lives()[-1].began.get("checkpoint")
        if used == torn:
            console.print("   (the new daemon had completed the half written checkpoint from the dead one's memory)")
        else:
            console.print(f"   (the half written checkpoint was not used, but {used})")
        os.kill(rank, signal.SIGKILL)

    step = training.interrupt("killed", kill)
    console.print(f"   sent at step {step}: the daemon ends the life, and `autoresume run` starts the next one")

    console.print("[bold]4.[/] a signal that reaches one rank alone: SIGUSR1 to rank 1")
    training.plan("signalled", SIGNALLED_AT, rank=1)
    training.plan("stopping", STOPPING_AT, rank=0)  # if it has not heard the signal before
    stops = training.stops()
    step = training.interrupt("signalled", lambda rank: os.kill(rank, signal.SIGUSR1))
    training.hold("stopping", lambda: training.stops() > stops)
    console.print(f"   sent at step {step}: both ranks save at a common step, and are started again")
    training.end()


def _torn(training: Training) -> str:
    """What is found after the kill in the middle of a save; the name of the checkpoint. Raises Failed if none is."""
    folder = training.half_written()
    if folder is None:
        raise Failed(f"the kill was to come in the middle of a save, and did not; {training.where()}")
    shards = len([file for file in (folder / "shards").iterdir() if file.suffix == ".safetensors"])
    parts, memory = len(list((folder / "parts").glob("rank-*.json"))), training.in_memory(folder.name)
    console.print(
        f"   found on disk: {folder.name} is half written: the tensors of {shards} of 2 ranks, the description\n"
        f"   of {parts}, and no manifest; as it is, it may not be used\n"
        f"   found in the node's memory: what was being written, of {memory} rank{'s' * (memory != 1)}"
    )
    return folder.name


def _draw(file: Path, calm: Training, rough: Training) -> None:
    rows = history.lives(incarnation.history(rough.storage))
    words = ENDS if len(rows) == len(ENDS) else [row["why"] for row in rows]
    picture.draw(file, calm.records(), rough.records(), rows, words)


def _autoresume(command: str, folder: Path) -> None:
    sys.stdout.flush()
    if subprocess.run([sys.executable, "-m", "autoresume", command, str(folder)], check=False).returncode != 0:
        raise Failed(f"`autoresume {command} {folder}` failed: see above why")


def _import_seconds() -> float:
    """How long it takes to import torch here, which says how fast this machine is."""
    began = time.monotonic()
    found = subprocess.run([sys.executable, "-c", "import torch.distributed.run"], capture_output=True, check=False)
    if found.returncode != 0:
        said = found.stderr.decode(errors="replace").strip().splitlines() or [
            f"exit code {found.returncode}, and nothing was said"
        ]
        raise Failed(f"torch can't be imported by {sys.executable}: {said[-1]}")
    return time.monotonic() - began


def _in_words(seconds: float) -> str:
    if seconds < 100:
        return f"{max(10, round(seconds / 10) * 10)} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 240 else f"{seconds / 60:.0f} minutes"
