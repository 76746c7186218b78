"""One life of a run: claimed exclusively, recorded, and over as soon as a newer one is claimed.

Law: a number is claimed by creating `incarnations/NNNN.json`, which only one process can. Everything
that an incarnation writes holds its number; before it publishes or deletes anything it looks for a
newer claim (`guard`). Who lives is found out, never assumed: on the same machine by the processes
themselves, elsewhere by a heartbeat file that must change.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from autoresume.base.failpoints import failpoint
from autoresume.errors import CheckpointInvalid, RunIsLive, StaleIncarnation
from autoresume.format import names
from autoresume.storage.base import Storage

HEARTBEAT_SECONDS = 10.0
_SILENT_SECONDS = 3 * HEARTBEAT_SECONDS
_LONG_AGO_SECONDS = 600.0


@dataclass
class Incarnation:
    """How one life began and ended. `ended` stays None when nobody was left to write it."""

    number: int
    run_id: str
    host: str
    boot: str
    processes: list[tuple[int, float]]
    """(pid, start time) of rank 0 and of its node daemon."""
    world_size: int
    command: list[str]
    job: dict[str, Any] = field(default_factory=dict)
    began: dict[str, Any] = field(default_factory=dict)
    """time, step, checkpoint (null from scratch), and later first_step_seconds."""
    ended: dict[str, Any] | None = None
    """time, how (finished, interrupted, failed, died), step, why; from a node daemon also the cause, the node that it
    came from, the error and its traceback, save_seconds, and then: what follows."""

    def to_bytes(self) -> bytes:
        value = {"format_version": names.FORMAT_VERSION, **asdict(self)}
        return json.dumps(value, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Incarnation:
        """Raises CheckpointInvalid."""
        try:
            value = json.loads(data)
            value.pop("format_version")
            value["processes"] = [(int(pid), float(started)) for pid, started in value["processes"]]
            record = cls(**value)
            for name, kind in _KINDS.items():
                found = getattr(record, name)
                if not isinstance(found, kind) or isinstance(found, bool):
                    raise TypeError(f"{name} is {found!r}")
            return record
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CheckpointInvalid(f"an incarnation's record is malformed: {error}") from error


_KINDS: dict[str, Any] = {
    "number": int,
    "world_size": int,
    "run_id": str,
    "host": str,
    "boot": str,
    "command": list,
    "job": dict,
    "began": dict,
    "ended": (dict, type(None)),
}


def this_process() -> tuple[int, float]:
    return os.getpid(), psutil.Process().create_time()


def boot_id() -> str:
    """Changes with every boot, and differs between machines that share a host name."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return str(psutil.boot_time())


def process_lives(pid: int, started: float) -> bool:
    """True if that very process, not a later one with its number, runs and is no zombie."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def numbers(storage: Storage) -> list[int]:
    """All claimed numbers, ascending."""
    found = (names.parse_incarnation_file(file) for file in storage.list(names.INCARNATIONS))
    return sorted(number for number in found if number is not None)


def read(storage: Storage, number: int) -> Incarnation:
    """Raises CheckpointInvalid, FileNotFoundError."""
    return Incarnation.from_bytes(storage.read(names.incarnation_file(number)))


def history(storage: Storage) -> list[Incarnation]:
    """All readable records, oldest first."""
    records = []
    for number in numbers(storage):
        try:
            records.append(read(storage, number))
        except (CheckpointInvalid, OSError):
            continue  # a record cut short by a crash is no reason not to train on
    return records


def claim(
    storage: Storage, make: Callable[[int], Incarnation], own: list[tuple[int, float]], attempts: int = 100
) -> Incarnation:
    """Claim the next number for the incarnation that `make(number)` describes. Durable when it returns.

    `own` lists processes that are part of this incarnation (its daemon lived before it). Raises
    RunIsLive, naming the other, if another incarnation of the run is alive.
    """
    for attempt in range(attempts):
        if attempt > 1:  # a node that keeps listings for a while (NFS) sees later who was first
            time.sleep(min(0.02 * attempt, 1.0))
        taken = numbers(storage)
        if taken:
            _refuse_if_alive(storage, taken[-1], own)
        record = make(taken[-1] + 1 if taken else 1)
        if storage.create(names.incarnation_file(record.number), record.to_bytes()):
            failpoint("incarnation.claimed")
            return record
    raise RunIsLive("other processes claim this run again and again; are many jobs started on one run directory?")


def _refuse_if_alive(storage: Storage, number: int, own: list[tuple[int, float]]) -> None:
    try:
        other = read(storage, number)
    except (CheckpointInvalid, OSError):
        return  # cut short by a crash while it was claimed: nobody lives there
    if other.ended is None and is_live(storage, other, own):
        pid, _ = other.processes[0]
        raise RunIsLive(
            f"incarnation {number} of this run is alive: process {pid} on {other.host}"
            + (f", job {other.job['id']}" if other.job.get("id") else "")
            + ". Two can't write to one run. Wait for it, stop it, or choose another run directory."
        )


def is_live(storage: Storage, other: Incarnation, own: list[tuple[int, float]]) -> bool:
    """Is any process of `other`, but those in `own`, alive? May wait for a heartbeat of another machine."""
    if other.host == socket.gethostname() and other.boot == boot_id():
        strangers = [process for process in other.processes if tuple(process) not in own]
        return any(process_lives(pid, started) for pid, started in strangers)
    if other.job.get("id") and other.job.get("id") == current_job().get("id"):
        return False  # an earlier life of this very job: Slurm has ended it, and its guard stops it if not
    return _heart_beats(storage, other.number)


def _heart_beats(storage: Storage, number: int) -> bool:
    def look() -> bytes:
        try:
            return storage.read(names.heartbeat_file(number))
        except OSError:
            return b""

    first = look()
    try:
        if not first or time.time() - float(first) > _LONG_AGO_SECONDS:
            return False
    except ValueError:
        return False
    deadline = time.monotonic() + _SILENT_SECONDS
    while time.monotonic() < deadline:
        if look() != first:
            return True
        time.sleep(0.5)
    return False


def write_heartbeat(storage: Storage, number: int) -> None:
    """Show other machines that this incarnation lives. Called every HEARTBEAT_SECONDS."""
    storage.write(names.heartbeat_file(number), repr(time.time()).encode())


def last_sign_of_life(storage: Storage, number: int) -> float | None:
    """When a life that has not ended was last heard of (seconds since 1970), if that is known."""
    try:
        return float(storage.read(names.heartbeat_file(number)))
    except (OSError, ValueError):
        return None


def update(storage: Storage, number: int, change: Callable[[Incarnation], None]) -> None:
    """Change this incarnation's own record. Durable when it returns."""
    record = read(storage, number)
    change(record)
    storage.write(names.incarnation_file(number), record.to_bytes())


def record_end(
    storage: Storage, number: int, how: str, step: int | None, why: str, more: Mapping[str, Any] | None = None
) -> None:
    """Write how it ended, unless that is known already. `more`: the cause, the node, the error and the like."""

    def change(record: Incarnation) -> None:
        if record.ended is None:
            record.ended = {"time": time.time(), "how": how, "step": step, "why": why, **(more or {})}

    update(storage, number, change)
    storage.remove(names.heartbeat_file(number))


def guard(storage: Storage, number: int) -> Callable[[], None]:
    """A function that raises StaleIncarnation once somebody claimed a later number."""

    def check() -> None:
        newest = numbers(storage)[-1:]
        if newest and newest[0] > number:
            raise StaleIncarnation(
                f"incarnation {newest[0]} has taken over this run; incarnation {number} stops writing and ends"
            )

    return check


def current_job() -> dict[str, Any]:
    """The batch job this process runs in, from Slurm's environment; empty outside of one."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return {
        "id": os.environ["SLURM_JOB_ID"],
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "spelled": f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"],
        "nodes": os.environ.get("SLURM_JOB_NODELIST"),
        "partition": os.environ.get("SLURM_JOB_PARTITION"),
    }
