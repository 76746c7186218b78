"""One checkpoint that does not lie where a run's do.

Law: for reading. A checkpoint's folder may be copied anywhere and be called anything; its own names stay.
"""

from __future__ import annotations

from pathlib import Path

from autoresume.format.names import CheckpointName, is_inside
from autoresume.storage.local import LocalStorage


class Moved(LocalStorage):
    """The storage of `name` alone, which is the folder `root`."""

    def __init__(self, root: Path, name: CheckpointName) -> None:
        super().__init__(root)
        self._prefix = name.folder

    def path(self, name: str) -> Path:
        if is_inside(name) and (name == self._prefix or name.startswith(f"{self._prefix}/")):
            return self.root / name[len(self._prefix) :].lstrip("/")
        return super().path(name)
