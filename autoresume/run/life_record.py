"""What rank 0 writes down of this life in its record (incarnations/NNNN.json): how it began, its first step, its end.

Law: a record that can't be written costs a message, never the training, but for the claim, without which nothing is
done. How the life before ended is written here, too, where nobody was left to do it.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from autoresume.base import code_revision
from autoresume.checkpoint import incarnation, requests
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.config.command_line import command_line
from autoresume.config.options import Options
from autoresume.errors import CheckpointInvalid
from autoresume.format.names import CheckpointName
from autoresume.run.cadence import life_seconds, time_between_failures
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")

_MOST_TRACEBACK = 20_000
"""Characters."""


class LifeRecord:
    """`code` is the revision that the script was started with; `previous` the record of the life before, if any."""

    def __init__(self, storage: LocalStorage) -> None:
        self._storage = storage
        self.code: dict[str, Any] = {}
        self.previous: Incarnation | None = None
        self.number = 0

    def look_back(self) -> None:
        """Before the claim: which life was the last, and what code this one is."""
        if sys.argv and sys.argv[0]:
            self.code = code_revision.fingerprint(Path(sys.argv[0]).absolute())
        self.previous = next(iter(incarnation.history(self._storage)[-1:]), None)

    def claim(self, run_id: str, world_size: int, daemon: tuple[int, float] | None) -> int:
        """The number of this incarnation, which nobody else has. Raises RunIsLive."""
        own = [incarnation.this_process()] + ([daemon] if daemon else [])
        requests.clear(self._storage, min(started for _, started in own))

        def make(number: int) -> Incarnation:
            return Incarnation(
                number=number,
                run_id=run_id,
                host=socket.gethostname(),
                boot=incarnation.boot_id(),
                processes=own,
                world_size=world_size,
                command=command_line(),
                job=incarnation.current_job(),
                began={"time": incarnation.this_process()[1]},
            )

        self.number = incarnation.claim(self._storage, make, own).number
        return self.number

    def failure_seconds(self) -> float:
        """Mean seconds between failures, of the lives of this run before this one."""
        past = [record for record in incarnation.history(self._storage) if record.number < self.number]
        signs = [incarnation.last_sign_of_life(self._storage, one.number) for one in past]
        return time_between_failures(life_seconds(one, sign) for one, sign in zip(past, signs))

    def note_beginning(self, options: Options, checkpoint: CheckpointName | None, origin: str | None) -> None:
        """What this life goes on from; `origin` is what a new run took over from elsewhere, in words."""
        code, previous = self.code or None, self.previous
        changed = code_revision.difference(previous.began.get("code"), code) if previous and code else None
        if previous is not None and changed:
            log.warning("the code is another one than in life %d: %s", previous.number, changed)
        request = options.restore.to_json() if options.restore.mode else None
        step, name = (checkpoint.step, str(checkpoint)) if checkpoint else (0, None)

        def change(record: Incarnation) -> None:
            record.began.update(time=record.began["time"], step=step, checkpoint=name, code=code, restore=request)
            if origin is not None:
                record.began["origin"] = origin

        incarnation.update(self._storage, self.number, change)

    def note_first_step(self) -> None:
        now = time.time()

        def change(record: Incarnation) -> None:
            record.began.update(first_step_seconds=round(now - record.began["time"], 3))

        try:
            incarnation.update(self._storage, self.number, change)
        except (OSError, CheckpointInvalid) as error:
            log.warning("when the first step was taken could not be written down: %s", error)

    def note_end_of_previous(self, last_step: int | None) -> None:
        """How the life before ended, if nobody was left to write it down."""
        record = self.previous
        if record is None or record.ended is not None:
            return
        heard = incarnation.last_sign_of_life(self._storage, record.number)
        more = {} if heard is None else {"time": heard}
        why = "no word of its end: killed, or its node was lost"
        incarnation.record_end(self._storage, record.number, "died", last_step, why, more)


def finished_life(storage: LocalStorage, options: Options) -> Incarnation | None:
    """The life that finished this run, if one did, and nobody asks to go on all the same: by `continue`, in other
    words than those that it was started with."""
    numbers = incarnation.numbers(storage)
    if not numbers:
        return None
    try:
        record = incarnation.read(storage, numbers[-1])
    except (CheckpointInvalid, OSError):
        return None
    if record.ended is None or record.ended["how"] != "finished":
        return None
    request = options.restore
    same = record.began.get("restore") == request.to_json() and record.command == command_line()
    return None if request.mode == "continue" and not same else record


def current_traceback() -> str | None:
    """Of the exception that is being handled, if one is."""
    return None if sys.exc_info()[0] is None else traceback.format_exc()[-_MOST_TRACEBACK:]
