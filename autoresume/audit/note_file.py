"""notes/rank-NNNNN.jsonl: a line for each step that a rank has made since its last checkpoints.

Law: lines are handed to the operating system within half a second, so that they survive this process, however that
dies. The file holds a few thousand lines at most, and is made small again when checkpoints have overtaken them. A disk
that is full or gone costs notes, never the training.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from pathlib import Path

from autoresume.audit.note import Note

log = logging.getLogger("autoresume")

VISIBLE_SECONDS = 0.5
"""Each write lets other threads of this process go first, which costs a step more than all the rest of its note."""
_MOST_NOTES = 4096
"""Of steps since a save: what is trained on behind them is not noted."""
_MOST_BYTES = 1 << 18
"""From where on the file is made small again at a save."""


class NoteFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._notes: deque[Note] = deque()
        """All that the file has to hold."""
        self._waiting: list[Note] = []
        self._saved: list[int] = []
        self._written = 0.0
        self._bytes = 0
        self._failed = False

    def begin(self, step: int, ranks: int) -> dict[int, Note]:
        """The run goes on after `step`: notes of the steps that were made behind it, of the newest life that made
        each."""
        found: dict[int, Note] = {}
        with contextlib.suppress(OSError):
            for line in self._path.read_bytes().splitlines():
                note = Note.of_line(line)
                if note is None or note.ranks != ranks or note.step <= step:
                    continue
                if note.step not in found or note.life >= found[note.step].life:
                    found[note.step] = note
        self._notes, self._saved = deque(found[step] for step in sorted(found)), [step]
        self._write_anew()
        return found

    def append(self, note: Note) -> None:
        if self._failed or note.step - self._saved[-1] > _MOST_NOTES:
            return
        self._notes.append(note)
        self._waiting.append(note)
        now = time.monotonic()
        if now - self._written >= VISIBLE_SECONDS:
            self._written = now
            self._flush()

    def saved(self, step: int) -> None:
        """A save of `step` was begun; the one before it is committed by now, if all is well."""
        oldest = self._saved[-1]
        self._saved = [oldest, step]
        if self._bytes > _MOST_BYTES:
            while self._notes and self._notes[0].step <= oldest:
                self._notes.popleft()
            self._write_anew()

    def close(self, finished: bool = False) -> None:
        """Of a run that is `finished` nothing is trained again: nothing stays."""
        if not finished:
            self._flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if finished:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
                self._path.parent.rmdir()  # the last of the ranks

    def _flush(self) -> None:
        if not self._waiting or self._failed:
            return
        data = b"".join(note.to_line() for note in self._waiting)
        self._waiting.clear()
        try:
            if self._descriptor is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o666)
            os.write(self._descriptor, data)
        except OSError as error:
            self._give_up(error)
        self._bytes += len(data)

    def _write_anew(self) -> None:
        self._waiting.clear()
        data = b"".join(note.to_line() for note in self._notes)
        try:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            if data:
                temporary = self._path.with_suffix(".tmp")
                temporary.write_bytes(data)
                temporary.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error)
        self._bytes = len(data)

    def _give_up(self, error: OSError) -> None:
        self._failed = True
        log.info(
            "steps are not noted any more in %s: %s; training goes on, and after a crash nothing can be compared",
            self._path,
            error.strerror or error,
        )
