"""Slurm's commands, run with a bound in time and tried again while the controller is away.

Law: nothing here interprets an answer. A command that is not there, one that Slurm refuses, and a controller
that does not answer are three different errors.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from autoresume.errors import AutoresumeError

_TIMEOUT_SECONDS = 20.0
_RETRY_SECONDS = 1.0
_AWAY = (
    "Unable to contact slurm controller",
    "Connection refused",
    "Socket timed out",
    "Unexpected message received",
    "Zero Bytes were transmitted",
    "Transport endpoint",
    "Slurm backup controller in standby mode",
    "Slurm is down",
)
"""Words by which a client says that the controller did not answer; the fourth is misleading, but it is one."""
_EXPIRED = ("Credential", "munge", "Munge", "Protocol authentication error")


class SlurmMissing(AutoresumeError):
    """There is no Slurm on this machine."""


class SlurmAway(AutoresumeError):
    """The controller did not answer."""


class SlurmRefused(AutoresumeError):
    """Slurm answered no; the message is its own words."""


def present(command: str = "scontrol") -> bool:
    return shutil.which(command) is not None


def run(
    command: Sequence[str],
    patience_seconds: float = 0.0,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> str:
    """What the command says. While the controller is away it is tried again for `patience_seconds`.

    Raises SlurmMissing, SlurmRefused, SlurmAway.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return _once(command, environment, timeout_seconds)
        except SlurmAway:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_SECONDS)


def _once(command: Sequence[str], environment: Mapping[str, str] | None, timeout_seconds: float) -> str:
    try:
        child = subprocess.Popen(
            list(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=dict(os.environ if environment is None else environment),
            start_new_session=True,
        )
    except FileNotFoundError:
        raise SlurmMissing(
            f"there is no {command[0]} on this machine, so no Slurm to talk to. `autoresume run` trains here without it"
        ) from None
    except OSError as error:
        raise SlurmMissing(f"{command[0]} can't be run on this machine: {error.strerror or error}") from None
    try:
        out, err = child.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # a site's command may be a shell around the real one
        child.communicate()
        raise SlurmAway(f"{command[0]} did not answer within {timeout_seconds:.0f} s") from None
    if child.returncode == 0:
        return out
    words = _words(err) or _words(out) or f"exit code {child.returncode}"
    if any(mark in words for mark in _AWAY):
        raise SlurmAway(f"{command[0]}: {words}")
    if any(mark in words for mark in _EXPIRED):
        words += ". The munge credential was not taken: is munged running here, and do the nodes' clocks agree?"
    raise SlurmRefused(f"{command[0]}: {words}")


def _words(text: str) -> str:
    """Slurm's words, without its noise."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "PMIx" not in line]
    return "; ".join(line.removeprefix("slurm_").split("error: ", 1)[-1] for line in lines)[:1000]
