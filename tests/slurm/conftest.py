from __future__ import annotations

import os
from pathlib import Path

import pytest


class Programs:
    """Programs of our own, first on PATH: Slurm's commands as a test needs them. Each notes how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.notes = folder / "calls"
        self.notes.write_text("")

    def make(self, name: str, body: str = "") -> None:
        """A shell script; `$count` is how often it has been called before."""
        file = self.folder / name
        new = file.with_suffix(".new")
        new.write_text(
            f'#!/bin/sh\ncount=$(grep -c "^{name} " {self.notes})\nprintf "%s\\n" "{name} $*" >> {self.notes}\n{body}\n'
        )
        new.chmod(0o755)
        new.rename(file)

    def calls(self, name: str = "") -> list[str]:
        return [line.rstrip() for line in self.notes.read_text().splitlines() if line.startswith(name)]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs(tmp_path)
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    return made
