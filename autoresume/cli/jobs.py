"""The jobs of a run, as Slurm knows them: what several commands need."""

from __future__ import annotations

import json

from autoresume.checkpoint import incarnation
from autoresume.errors import AutoresumeError, UsageError
from autoresume.format import names
from autoresume.slurm import commands, queue
from autoresume.slurm.job import ACTIVE, JobView
from autoresume.storage.local import LocalStorage


def of_run(storage: LocalStorage) -> list[str]:
    """The jobs that trained the run, or were submitted for it, oldest first, as Slurm's commands name them."""
    found = []
    for file in sorted(storage.list(names.SUBMISSIONS)):
        if file.endswith(".json"):
            try:
                found.append(str(json.loads(storage.read(f"{names.SUBMISSIONS}/{file}"))["job"]))
            except (OSError, ValueError, KeyError):
                continue
    found += [str(record.job["spelled"]) for record in incarnation.history(storage) if record.job.get("spelled")]
    return list(dict.fromkeys(found))


def active(storage: LocalStorage) -> list[JobView]:
    """Those that are waiting or running. Raises SlurmMissing, SlurmAway."""
    views = [view for job in of_run(storage)[-4:] for view in queue.look_at_all(job)]
    return [view for view in {view.spelled: view for view in views}.values() if view.state in ACTIVE]


def active_if_known(storage: LocalStorage) -> tuple[list[JobView], str | None]:
    """As `active`; without an answer, none, and why."""
    if not of_run(storage) or not commands.present():
        return [], None
    try:
        return active(storage), None
    except AutoresumeError as error:
        return [], str(error)


def only_active(storage: LocalStorage, run: str) -> list[JobView]:
    """Raises UsageError if no job of the run is there."""
    found = active(storage) if of_run(storage) else []
    if not found:
        raise UsageError(f"no job of {run} is waiting or running; autoresume status {run} says how it ended")
    return found
