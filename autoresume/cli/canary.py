"""The canary of `autoresume doctor`: a job of a minute that is really signalled, saved, requeued and resumed.

Law: it goes the way of every job: submitted by sbatch's module, trained by scripts/canary.py, and judged by the
records that it leaves. Whatever happens, the job and its folder are removed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import autoresume
from autoresume.base.findings import Finding, Verdict, format_bytes
from autoresume.checkpoint import incarnation
from autoresume.checkpoint.discover import list_checkpoints
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.cli.sbatch import Submission
from autoresume.errors import AutoresumeError
from autoresume.slurm import commands, queue
from autoresume.storage.local import LocalStorage

_QUEUE_SECONDS = 600.0
_LIFE_SECONDS = 180.0
_LOOK_SECONDS = 0.2
_END_SECONDS = 60.0
_SCRIPT = Path(autoresume.__file__).parent / "scripts" / "canary.py"


class _Ended(Exception):
    """The canary did not come so far; the message says how far."""


def send(words: list[str], bytes_of_state: int, folder: Path, grace_seconds: float | None) -> list[Finding]:
    """Submit it with sbatch's options `words`, its run in `folder`, and say what became of it."""
    run = folder.absolute() / f"canary-{time.time_ns():x}"
    submission = Submission.of([*words, "--time=10", f"--run-dir={run}", str(_SCRIPT), str(bytes_of_state)])
    try:
        job = submission.submit()
    except AutoresumeError as error:
        return [Finding("canary", Verdict.FAIL, "it was not submitted", str(error), "Mend that: no job would be.")]
    try:
        return _watched(LocalStorage(run), job, bytes_of_state, submission.world_size, grace_seconds)
    except _Ended as error:
        hint = f"Look at its log: {_last_lines(run)}"
        return [Finding("canary", Verdict.FAIL, str(error), "a preemption is not survived as it should be", hint)]
    finally:
        _end(job)
        shutil.rmtree(run, ignore_errors=True)


def _watched(
    storage: LocalStorage, job: str, bytes_of_state: int, ranks: int, grace_seconds: float | None
) -> list[Finding]:
    try:
        _until(lambda: _first_step(_life(storage, 1)), job, _QUEUE_SECONDS, "its training has not begun")
    except _Ended as error:
        view = queue.look(job)
        if view is not None and view.state == "PENDING":
            means = "nothing was tried; the queue is long"
            return [Finding("canary", Verdict.UNKNOWN, f"it still waits ({view.reason})", means, "Try again later.")]
        raise error
    signalled = time.time()
    commands.run(["scancel", "--signal=TERM", job], 10.0)
    ended = _until(lambda: _ending(_life(storage, 1)), job, _LIFE_SECONDS, "it did not react to SIGTERM")
    committed = [name for name in list_checkpoints(storage) if storage.size(name.manifest) is not None]
    if ended["how"] != "interrupted" or not committed:
        raise _Ended(f"it ended as {ended['how']} ({ended['why']}), with {len(committed)} checkpoints")
    seconds = max(0.0, storage.path(committed[0].manifest).stat().st_mtime - signalled)
    word = "rank" if ranks == 1 else "ranks"
    found = [
        Finding("canary: signal", Verdict.PASS, f"SIGTERM stopped {ranks} {word} at one step", "signals come through"),
        _save(seconds, bytes_of_state, grace_seconds),
    ]
    second = _until(lambda: _first_step(_life(storage, 2)), job, _QUEUE_SECONDS, "it was not requeued")
    away = float(second["time"]) - float(ended["time"])
    if second.get("step") != committed[0].step:
        raise _Ended(f"its second life began at step {second.get('step')}, not at {committed[0].step}")
    words = f"it ran again {away:.0f} s later, from the very step"
    return [*found, Finding("canary: requeue", Verdict.PASS, words, "a preempted job goes on by itself")]


def _save(seconds: float, bytes_of_state: int, grace_seconds: float | None) -> Finding:
    words = f"{format_bytes(bytes_of_state)} were committed {seconds:.1f} s after the signal"
    if grace_seconds is None:
        return Finding("canary: save", Verdict.PASS, words, "how much time a preemption leaves is not known")
    if seconds < 0.8 * grace_seconds:
        return Finding("canary: save", Verdict.PASS, words, f"a grace time of {grace_seconds:.0f} s is enough")
    return Finding(
        "canary: save",
        Verdict.WARN,
        words,
        f"a grace time of {grace_seconds:.0f} s is too short: the steps since the last save are repeated",
        "Save often (save_every), or on faster storage.",
    )


def _until(look: Callable[[], dict[str, Any] | None], job: str, seconds: float, problem: str) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    next_ask = 0.0
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > next_ask:
            next_ask = time.monotonic() + 5.0
            view = queue.look(job, 30.0)
            if view is None or view.state in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"):
                raise _Ended(f"{problem}: the job is {view.state if view else 'gone'}")
        time.sleep(_LOOK_SECONDS)
    raise _Ended(f"{problem} within {seconds:.0f} s")


def _life(storage: LocalStorage, number: int) -> Incarnation | None:
    try:
        return incarnation.read(storage, number)
    except (AutoresumeError, OSError):
        return None


def _first_step(life: Incarnation | None) -> dict[str, Any] | None:
    return life.began if life is not None and "first_step_seconds" in life.began else None


def _ending(life: Incarnation | None) -> dict[str, Any] | None:
    return life.ended if life is not None else None


def _last_lines(run: Path) -> str:
    text = "".join(path.read_text(errors="replace") for path in sorted((run / "logs").glob("*.log")))
    return " / ".join(text.splitlines()[-4:]) or "it is empty"


def _end(job: str) -> None:
    """A requeue that is under way is stopped, too. Returns when its processes are gone, so that its folder can go."""
    for command in (["scontrol", "update", f"job={job}", "requeue=0"], ["scancel", job]):
        try:
            commands.run(command, 10.0)
        except AutoresumeError:
            continue  # it is over already
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        try:
            view = queue.look(job)
        except AutoresumeError:
            return
        if view is None or view.state not in ("PENDING", "RUNNING", "COMPLETING"):
            return
        time.sleep(_LOOK_SECONDS)
