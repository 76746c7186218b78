"""run.json: what a run is, whichever life of it looks.

Law: made once, by whoever comes first; afterwards changed by rank 0 of the life that goes on, and by no one else. A
file that can't be read is an error that names it.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any

from autoresume.config.command_line import command_line
from autoresume.config.options import Options
from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.storage.local import LocalStorage


class RunFile:
    """`run_id` is the run's for ever; `seed` is that of its first start, unless the options give one. `loggers` is what
    the loggers call this run, as far as this process knows."""

    def __init__(self, storage: LocalStorage, options: Options) -> None:
        """Make the run's folder and its file, or find them. Raises UsageError if that can't be."""
        self._storage = storage
        self._lock = threading.Lock()  # a logger may be opened late, in a thread of its own
        self.loggers: dict[str, dict[str, str]] = {}
        self.run_id, self.seed = self._open(options)

    def _open(self, options: Options) -> tuple[str, int]:
        folder = self._storage.root
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made = {
                "format_version": names.FORMAT_VERSION,
                "run_id": secrets.token_hex(6),
                "seed": options.seed if options.seed is not None else secrets.randbits(48),
                "created": time.time(),
                "command": command_line(),
                "stage": options.stage,
                "loggers": {},
            }
            self._storage.create(names.RUN, json.dumps(made, indent=1).encode() + b"\n")
            found = self.read()
            return str(found["run_id"]), int(found["seed"] if options.seed is None else options.seed)
        except OSError as error:
            raise UsageError(
                f"the run directory {folder} can't be used: {error.strerror or error}. Choose another one with "
                "run_dir=..., or AUTORESUME_RUN_DIR."
            ) from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"{folder / names.RUN} is damaged ({error}); restore it or choose another run_dir"
            ) from error

    def read(self) -> dict[str, Any]:
        """Raises OSError, ValueError."""
        return dict(json.loads(self._storage.read(names.RUN)))

    def change(self, **values: Any) -> None:
        """Rank 0: write what the file says of these. Durable when it returns."""
        with self._lock:
            before = self.read()
            if any(before.get(key) != value for key, value in values.items()):
                self._storage.write(names.RUN, json.dumps({**before, **values}, indent=1).encode() + b"\n")

    def parent(self) -> dict[str, Any]:
        """The run that this one began from: run_id, origin (in words), loggers (its identities); empty if none."""
        return dict(self.read().get("parent") or {})

    def datasets(self) -> dict[str, Any]:
        """The arguments that the run's data sets were made with, by name."""
        return dict(self.read().get("datasets") or {})

    def read_loggers(self) -> dict[str, dict[str, str]]:
        """What the loggers call this run."""
        self.loggers = {key: dict(value) for key, value in self.read().get("loggers", {}).items()}
        return {key: dict(value) for key, value in self.loggers.items()}

    def write_loggers(self, identities: Mapping[str, Mapping[str, str]]) -> None:
        self.loggers = {key: dict(value) for key, value in identities.items()}
        self.change(loggers=self.loggers)
