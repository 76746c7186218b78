"""autoresume logs: what a run's jobs have said, across its lives."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from autoresume.cli import jobs
from autoresume.cli.common import open_run
from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.storage.local import LocalStorage

_LOOK_SECONDS = 0.5
_ASK_SECONDS = 10.0


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("-f", "--follow", is_flag=True, help="Go on until the run's jobs are over.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=None, metavar="N", help="Only the last N lines.")
def command(run: str, follow: bool, lines: int | None) -> None:
    """The logs of the jobs of the directory RUN, oldest first; a requeued job goes on in its own."""
    folder = Path(run)
    if not (folder / names.LOGS).is_dir():
        open_run(run)  # says what there is nearby, if RUN is none
        raise UsageError(f"{run} has no {names.LOGS}/: its jobs were not submitted by autoresume sbatch")
    read = {file: file.read_bytes() for file in _files(folder)}
    text = b"".join(read.values())
    shown = text if lines is None else b"".join(text.splitlines(keepends=True)[-lines:]) if lines else b""
    sys.stdout.buffer.write(shown)
    sys.stdout.flush()
    if follow:
        _follow(folder, {file: len(data) for file, data in read.items()})


def _files(folder: Path) -> list[Path]:
    """Of a run, or of all tasks of an array."""
    return sorted((folder / names.LOGS).glob("*.log"), key=lambda file: file.stat().st_mtime)


def _follow(folder: Path, read: dict[Path, int]) -> None:
    storage, next_ask = LocalStorage(folder), time.monotonic() + _ASK_SECONDS
    try:
        while True:
            news = False
            for file in _files(folder):
                with open(file, "rb") as stream:
                    stream.seek(read.get(file, 0))
                    data = stream.read()
                if data:
                    news = True
                    read[file] = read.get(file, 0) + len(data)
                    sys.stdout.buffer.write(data)
                    sys.stdout.flush()
            if not news and time.monotonic() > next_ask:
                next_ask = time.monotonic() + _ASK_SECONDS
                views, problem = jobs.active_if_known(storage)
                if not views and problem is None:
                    return
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        return
