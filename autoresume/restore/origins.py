"""Where a run begins from: what people write as `restore.from`, and where it leads.

Law: looks, and changes nothing. A path counts before a name; a name is looked for among the runs that lie nearby, by
their id, their folder, and what their loggers call them. What is not found is told with the places that were looked at.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresume.checkpoint.committed import committed_checkpoints
from autoresume.checkpoint.select import Best, select
from autoresume.errors import CheckpointInvalid, UsageError
from autoresume.format import names
from autoresume.format.manifest import Manifest, ManifestHead
from autoresume.format.names import CheckpointName
from autoresume.storage.local import LocalStorage
from autoresume.storage.moved import Moved

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Origin:
    """One of: a run, of which a checkpoint is yet to be selected; a committed checkpoint's folder; a file or folder of
    another format; a URL that is yet to be downloaded."""

    description: str
    """What was asked for."""
    run: Path | None = None
    checkpoint: Path | None = None
    foreign: Path | None = None
    url: str | None = None


@dataclass(frozen=True)
class SelectedCheckpoint:
    """A committed checkpoint: `storage` holds it under its name. `why` it was chosen."""

    storage: LocalStorage
    name: CheckpointName
    run_id: str
    why: str

    def manifest(self) -> Manifest:
        """Raises CheckpointInvalid."""
        return Manifest.from_bytes(self.storage.read(self.name.manifest))


def find_origin(text: str, base: Path, stage: str | None = None) -> Origin:
    """What `text` means to somebody who stands in `base`. Raises UsageError if nothing is found."""
    if _URL.match(text):
        return Origin(text, url=text)
    path = base / Path(text).expanduser()
    if path.exists():
        return _at(text, path.absolute(), stage)
    runs = list(_runs_near(base))
    found = [folder for folder, value in runs if _is_called(text, folder, value)]
    if not found and text.count("/") == 2:
        found = [folder for folder in [_by_wandb(text)] if folder is not None]
    if len(found) > 1:
        raise UsageError(f"{text!r} is the name of {len(found)} runs: {', '.join(map(str, found[:5]))}; give a path")
    if found:
        return Origin(text, run=_stage_of(found[0], stage))
    near = ", ".join(sorted(str(folder) for folder, _ in runs)[:5]) or "none"
    raise UsageError(
        f"restore.from={text!r} is not found: there is no {path.absolute()}, and of the {len(runs)} runs in and near "
        f"{base} none has this id or name, for itself or with its loggers. Runs there: {near}. Nothing was started; "
        "check the path (an absolute one does not depend on where you stand), or give a URL."
    )


def select_checkpoint(origin: Origin, selector: str, best: Best | None = None) -> SelectedCheckpoint:
    """The committed checkpoint of a run, or the one whose folder was given. Raises UsageError, CheckpointInvalid."""
    if origin.checkpoint is not None:
        return _lone(origin.checkpoint)
    assert origin.run is not None
    storage = LocalStorage(origin.run)
    best = best or best_metric_of(storage)
    chosen = select(selector, committed_checkpoints(storage), best, str(origin.run))
    return SelectedCheckpoint(storage, chosen.name, str(_run_json(origin.run).get("run_id")), chosen.why)


def best_metric_of(storage: LocalStorage) -> Best | None:
    """What a run calls its best, if it says so."""
    found = _run_json(storage.root).get("best")
    if not isinstance(found, dict):
        return None
    return Best(str(found.get("metric")), bool(found.get("highest")))


def enclosing_run(origin: Origin) -> Path | None:
    """The run's folder that it lies in, if it is in one."""
    if origin.run is not None:
        return origin.run
    if origin.checkpoint is not None:
        folder = origin.checkpoint.parent.parent
        if origin.checkpoint.parent.name == names.CHECKPOINTS and (folder / names.RUN).exists():
            return folder
    return None


def _at(text: str, path: Path, stage: str | None) -> Origin:
    if path.is_file():
        if path.name == names.RUN:
            return Origin(text, run=path.parent)
        if path.name == _MANIFEST:
            return Origin(text, checkpoint=path.parent)
        return Origin(text, foreign=path)
    if (path / _MANIFEST).exists():
        return Origin(text, checkpoint=path)
    if (path / names.RUN).exists() or _stages(path):
        return Origin(text, run=_stage_of(path, stage))
    for parent in path.parents[:3]:  # its checkpoints/, or the folder of a logger, as `tensorboard --logdir` has it
        if (parent / names.RUN).exists() and not any(path.glob("*.safetensors")):
            return Origin(text, run=parent)
    return Origin(text, foreign=path)


def _stages(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{names.RUN}"))}


def _stage_of(folder: Path, stage: str | None) -> Path:
    """The folder of a stage of a run; the run's own where it has none. Raises UsageError."""
    stages = _stages(folder)
    if stage is not None:
        if stage in stages:
            return stages[stage]
        if _run_json(folder).get("stage") == stage:
            return folder
        raise UsageError(
            f"restore.stage={stage!r}: {folder} has no such stage; it has {', '.join(stages) or 'no stages at all'}"
        )
    if (folder / names.RUN).exists():
        return folder
    if len(stages) == 1:
        return next(iter(stages.values()))
    raise UsageError(f"{folder} has several stages: {', '.join(stages)}; say which with restore.stage")


def _runs_near(base: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    seen = set()
    for pattern in (f"runs/*/{names.RUN}", f"runs/*/*/{names.RUN}", f"*/{names.RUN}", f"*/*/{names.RUN}"):
        for path in sorted(base.glob(pattern)):
            if path.parent not in seen:
                seen.add(path.parent)
                yield path.parent, _run_json(path.parent)


def _run_json(folder: Path) -> dict[str, Any]:
    try:
        value = json.loads((folder / names.RUN).read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_called(text: str, folder: Path, value: dict[str, Any]) -> bool:
    if text in (value.get("run_id"), folder.name):
        return True
    loggers = value.get("loggers")
    identities = loggers.values() if isinstance(loggers, dict) else ()
    return any(text in _names_of(identity) for identity in identities if isinstance(identity, dict))


def _names_of(identity: dict[str, Any]) -> list[str]:
    """What a logger's run can be called by."""
    return [str(identity[key]) for key in ("path", "id", "run_id", "folder", "url") if identity.get(key)]


def _by_wandb(text: str) -> Path | None:
    """The folder that a run of Weights & Biases has in its configuration, where the tool is there and can be asked."""
    try:
        wandb = importlib.import_module("wandb")
        found = wandb.Api(timeout=10).run(text).config
        value = found.get("autoresume.run_dir") or found.get("autoresume", {}).get("run_dir")
    except Exception:  # noqa: BLE001  (other people's code, the network, no account: then it can't be found there)
        return None
    return Path(value) if value and (Path(value) / names.RUN).exists() else None


def _lone(folder: Path) -> SelectedCheckpoint:
    """A checkpoint by its folder, wherever that lies and however it is called now."""
    try:
        head = ManifestHead.from_bytes((folder / _MANIFEST).read_bytes())
    except CheckpointInvalid as error:
        raise CheckpointInvalid(f"{folder}: {error}") from error
    storage = LocalStorage(folder.parent.parent)
    if folder.parent.name != names.CHECKPOINTS or folder.name != str(head.checkpoint):
        storage = Moved(folder, head.checkpoint)
    return SelectedCheckpoint(storage, head.checkpoint, head.run_id, "by its folder")
