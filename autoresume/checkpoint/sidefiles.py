"""Files that a script keeps beside its state (`best.pt`), as they were at each checkpoint.

Law: a side file is only ever replaced as a whole, so a checkpoint keeps a second name of it, which
costs no copy. Putting back makes the folder what the checkpoint holds; what is newer is put aside.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import BinaryIO

from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.storage.base import Storage
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")


def open_file(storage: LocalStorage, name: str, mode: str) -> AbstractContextManager[BinaryIO]:
    """One of the run's, to be read ("rb"), or written as a whole ("wb"). Raises OSError, UsageError."""
    if mode not in ("rb", "wb") or not names.is_inside(name):
        raise UsageError(f"run.open({name!r}, {mode!r}): give a plain relative name, and 'rb' or 'wb'")
    inside = f"{names.FILES}/{name}"
    return storage.writer(inside) if mode == "wb" else open(storage.path(inside), "rb")


def is_side_file(file: str) -> bool:
    """Whether a file inside a checkpoint is a side file."""
    return file.startswith(f"{names.FILES}/")


def copy_into(storage: Storage, name: CheckpointName) -> tuple[str, ...]:
    """Give every side file a second name in the checkpoint's folder; their names inside of it.

    Never raises for the storage's sake: a file that could not be enclosed is named all the same, so that
    persisting misses it, and fails where failing costs the training nothing.
    """
    files: tuple[str, ...] = (names.FILES,)
    try:
        files = tuple(file for file in walk(storage, names.FILES) if not names.is_temporary(file))
        for file in files:
            storage.link(file, name.inside(file))
    except OSError as error:
        log.warning("the side files could not be enclosed in checkpoint %s: %s", name, error)
    return files


def restore_files(storage: Storage, name: CheckpointName | None, files: tuple[str, ...], incarnation: int) -> list[str]:
    """Make the run's side files those of the checkpoint (none, if there is none); what was put aside."""
    newer = [file for file in walk(storage, names.FILES) if file not in files]
    for file in newer:
        storage.move(file, f"{names.ASIDE_FILES}/{incarnation:04d}/{file}")
    if name is not None:
        for file in files:
            storage.link(name.inside(file), file)
    return newer


def walk(storage: Storage, folder: str) -> list[str]:
    """All files below `folder`."""
    found = []
    for entry in storage.list(folder):
        inside = walk(storage, f"{folder}/{entry}")
        found.extend(inside or [f"{folder}/{entry}"])
    return found
