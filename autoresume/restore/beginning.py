"""How a run begins when it does not begin from scratch, and how it goes back to an earlier checkpoint of its own.

Law: rank 0 decides and every rank is told. Nothing of another run is ever written, moved or deleted; what a run goes
back over is put aside, not deleted. A request is carried out once: a run that has begun goes on from its own newest
checkpoint, however often it is started again with the same words.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.discover import Judged, judge, list_checkpoints, load_part, set_aside
from autoresume.checkpoint.persist import Guard
from autoresume.config import restore_request
from autoresume.config.command_line import default_run_dir
from autoresume.config.options import Options
from autoresume.config.restore_request import RestoreRequest
from autoresume.errors import CheckpointInvalid, UsageError
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.restore import origins
from autoresume.restore.download import download_origin
from autoresume.restore.origins import Origin, SelectedCheckpoint
from autoresume.storage.base import Storage
from autoresume.storage.local import LocalStorage
from autoresume.storage.moved import Moved

log = logging.getLogger("autoresume")


@dataclass(frozen=True)
class Beginning:
    """What a new run takes over, and from where: `checkpoint` of ours, or the weights in `path`, of another format."""

    mode: str
    description: str
    """Such as "finetune of runs/base, E3_U120_S960-0001 (the latest)"."""
    path: Path
    checkpoint: CheckpointName | None = None
    lone: bool = False
    """`path` is the checkpoint's own folder, and not a run's."""
    run_id: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the checkpoint says of its run."""
    models: Sequence[str] = ()
    """The models that it holds, by name."""

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "path": str(self.path), "checkpoint": self.checkpoint and str(self.checkpoint)}

    @staticmethod
    def of(value: Mapping[str, Any]) -> Beginning:
        name = CheckpointName.parse(value["checkpoint"] or "")
        return Beginning(**{**value, "path": Path(value["path"]), "checkpoint": name})

    @property
    def storage(self) -> Storage:
        assert self.checkpoint is not None
        return Moved(self.path, self.checkpoint) if self.lone else LocalStorage(self.path)


@dataclass
class PastRequests:
    """What earlier lives of this run have done about requests."""

    requests: list[Any] = field(default_factory=list)
    has_checkpoints: bool = False

    @staticmethod
    def of(storage: Storage) -> PastRequests:
        requests = [record.began.get("restore") for record in incarnation.history(storage)]
        there = any(storage.size(name.manifest) is not None for name in list_checkpoints(storage))
        return PastRequests([one for one in requests if one], there or bool(storage.list(names.ASIDE)))


def run_folder_of(options: Options, default: Path, base: Path) -> Path:
    """Where the run lives: in its own folder, or in that of the run that it continues. Raises UsageError."""
    run = base / options.run_dir if options.run_dir else default
    own = run / options.stage if options.stage else run
    request = options.restore
    if request.mode != "continue" or options.stage or options.run_dir:
        return own
    if request.source is None and request.stage is None:
        return own
    origin = origin_of(request, run, base)
    return origins.enclosing_run(origin) or own


def default_run_folder(arguments: list[str], base: Path, said: Mapping[str, str] | None = None) -> Path:
    """Where the run of a command lives that says nothing else; `said` are parts of `restore` that were said beside it.

    Raises UsageError.
    """
    arguments = list(arguments)
    parts = (
        restore_request.from_environment(os.environ) | dict(said or {}) | restore_request.take_from_arguments(arguments)
    )
    options = Options(restore=RestoreRequest(**restore_request.merge_request(None, parts, "the command line")))
    return run_folder_of(options, default_run_dir(arguments, base, options.restore), base)


def origin_of(request: RestoreRequest, run: Path, base: Path) -> Origin:
    """Where a request leads; `run` is the folder of the run that makes it, without its stage. Raises UsageError."""
    return origins.find_origin(request.source or str(run), base, request.stage)


def check_beginning(options: Options, folder: Path, base: Path) -> None:
    """Before anything is made: whether a new run would find what it is to begin with, as far as can be seen from here.

    Raises UsageError, CheckpointInvalid.
    """
    request = options.restore
    if request.mode is None or (folder / names.RUN).exists():
        return
    if request.source is None and request.stage is None:
        raise UsageError(_NOTHING_THERE.format(folder=folder))
    origin = origin_of(request, folder.parent if options.stage else folder, base)
    if origin.url is None and origin.foreign is None:
        origins.select_checkpoint(origin, request.select)


_NOTHING_THERE = (
    "restore.mode='continue', but the run in {folder} has no checkpoint to go on from. Nothing was started; give "
    "restore.from, or leave the mode out to begin from scratch"
)


def decide_beginning(
    options: Options, folder: Path, base: Path, storage: LocalStorage, guard: Guard, number: int
) -> Beginning | None:
    """Rank 0, before the run's own checkpoints are looked at: what it begins with, if it has none.

    Goes back to an earlier checkpoint of the run's own where that is asked for. Raises UsageError, CheckpointInvalid.
    """
    request, past = options.restore, PastRequests.of(storage)
    if request.mode is None:
        return None
    done = request.to_json() in past.requests
    if request.source is None and request.stage is None:
        if not past.has_checkpoints:
            raise UsageError(_NOTHING_THERE.format(folder=folder))
        if request.select != "latest" and not done:
            _go_back(origins.select_checkpoint(Origin(str(folder), run=folder), request.select), storage, guard, number)
        return None
    if done and past.has_checkpoints:
        return None  # this start only goes on
    run = folder.parent if options.stage else folder
    origin = origin_of(request, run, base)
    around = origins.enclosing_run(origin)
    if request.mode == "continue" and around is not None and around.resolve() == folder.resolve():
        if request.select != "latest" or origin.checkpoint is not None:
            _go_back(origins.select_checkpoint(origin, request.select), storage, guard, number)
        elif not past.has_checkpoints:
            raise UsageError(_NOTHING_THERE.format(folder=folder))
        return None
    if past.has_checkpoints:
        raise UsageError(
            f"the run in {folder} has begun already, and not by restore.mode={request.mode!r} from "
            f"{origin.description}: it would go on from its own checkpoints. To begin a new run give another run_dir "
            "(or stage); to go on with this one leave restore.mode out."
        )
    return _from_elsewhere(request, origin, storage)


def _from_elsewhere(request: RestoreRequest, origin: Origin, storage: LocalStorage) -> Beginning:
    mode = str(request.mode)
    origin = download_origin(origin, storage.root)
    if origin.foreign is not None:
        if mode != "finetune":
            raise UsageError(
                f"restore.mode={mode!r} from {origin.description}: that is no checkpoint of autoresume, and of other "
                "formats only weights are read. Give restore.mode=finetune, or bring the rest in by the script itself."
            )
        return Beginning(mode, f"{mode} of {origin.description}", origin.foreign)
    place = origins.select_checkpoint(origin, request.select)
    words = f"{mode} of {origin.description}, {place.name} ({place.why})"
    lone = isinstance(place.storage, Moved)
    part = load_part(place.storage, place.manifest(), 0)
    kinds = {name: one.get("kind") for name, one in dict(part.about.get("objects") or {}).items()}
    models = [name for name in part.tree if kinds.get(name, "module") == "module" and name not in ("run", "state")]
    return Beginning(mode, words, place.storage.root, place.name, lone, place.run_id, part.about, models)


def _go_back(place: SelectedCheckpoint, storage: LocalStorage, guard: Guard, number: int) -> None:
    """Put everything that is newer than `place` aside, the newest first: an interruption leaves nothing in between."""
    problem = judge(storage, place.name).problem
    if problem is not None:
        raise CheckpointInvalid(f"{place.name}, which was chosen as {place.why}, can't be restored: {problem}")
    newer = [name for name in list_checkpoints(storage) if name > place.name]
    reason = f"incarnation {number} went back to {place.name} ({place.why})"
    for name in newer:
        guard()
        set_aside(storage, Judged(name, None, reason))
    if newer:
        log.info("%s: %d newer checkpoints are put aside, e.g. %s", reason, len(newer), newer[0])
