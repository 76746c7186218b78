"""What the command that started the script says: which run it is, and where messages go.

Law: the same command, started in the same folder, is the same run; another one is another.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from autoresume.config.restore_request import RestoreRequest, take_from_arguments
from autoresume.format.digest import digest

_taken: dict[str, str] = {}
_taken_words: list[str] = []


def take_restore_arguments() -> dict[str, str]:
    """Take `--restore.mode ...` and the like from this process's command line, before the script looks at it.

    What they said, now or earlier. Raises UsageError.
    """
    before = list(sys.argv)
    _taken.update(take_from_arguments(sys.argv))
    if len(sys.argv) < len(before):
        _taken_words.extend(before)
    return dict(_taken)


def command_line() -> list[str]:
    """The command line as it was given."""
    return list(_taken_words or sys.argv)


def default_run_dir(arguments: list[str], folder: Path, restore: RestoreRequest) -> Path:
    """runs/<script>, with a digest of what else makes the command: arguments, a script that lies elsewhere, and what a
    new run begins with.

    The same command is the same run, and another script of the same name is another.
    """
    stem = Path(arguments[0]).stem if arguments and arguments[0] else "interactive"
    path = folder / arguments[0] if arguments and arguments[0] else folder / stem
    elsewhere = [] if path.resolve().parent == folder.resolve() else [os.path.relpath(path.resolve(), folder.resolve())]
    begins = [json.dumps(restore.to_json())] if restore.mode in ("finetune", "hotstart") else []
    rest = "\0".join([*elsewhere, *arguments[1:], *begins])
    return folder / "runs" / (f"{stem}-{digest(rest.encode())[:8]}" if rest else stem)


def configure_logging() -> None:
    """Say what happens on standard error, unless the script has set up logging by itself."""
    logger = logging.getLogger("autoresume")
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    rank = os.environ.get("RANK", "0")
    prefix = "autoresume" if rank == "0" else f"autoresume[{rank}]"
    handler.setFormatter(logging.Formatter(f"{prefix}: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
