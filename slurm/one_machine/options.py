"""What the user may choose, and what a cluster is when nothing is chosen.

Every option of `up` has a flag and an environment variable, e.g. `--grace 5` and
`AUTORESUME_CLUSTER_GRACE=5`; the flag wins.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from one_machine.layout import default_root

PROCTRACKS = ("auto", "cgroup", "linuxproc")


@dataclass(frozen=True)
class Options:
    """What a cluster was asked to be; kept in its state directory. `requeue_exit` None: no such code."""

    nodes: int = 4
    cpus: int = 2
    gpus: int = 0
    grace_seconds: int = 10
    preempt_send_user_signal: bool = False
    requeue_exit: int | None = None
    accounting: bool = False
    proctrack: str = "auto"


# Field of Options -> what its flag is called, in the words of slurm.conf.
FLAGS = {
    "nodes": "--nodes",
    "cpus": "--cpus",
    "gpus": "--gpus",
    "grace_seconds": "--grace",
    "preempt_send_user_signal": "--preempt-send-user-signal",
    "requeue_exit": "--requeue-exit",
    "accounting": "--accounting",
    "proctrack": "--proctrack",
}


def parser() -> argparse.ArgumentParser:
    """The whole command line; an option that was not given is None."""
    result = argparse.ArgumentParser(
        prog="cluster",
        description="A real Slurm cluster of several nodes on this machine.",
        epilog="Every option can also be set in the environment, e.g. AUTORESUME_CLUSTER_GRACE=5."
        " Exit status: 0 done (status: all is up), 1 failed, 2 wrong usage, 3 Slurm is not"
        " installed and can't be installed from here.",
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="up|down|status|env")
    up = commands.add_parser("up", help="start it, or restart what died in it")
    others = [
        commands.add_parser("down", help="stop it and remove all its traces"),
        commands.add_parser("status", help="show it; exit 0 only if all of it is up"),
        commands.add_parser("env", help='print what makes a shell use it: eval "$(cluster env)"'),
    ]
    for command in (up, *others):
        command.add_argument(
            "--dir",
            type=Path,
            default=from_environment("dir") or default_root(),
            help="state directory (%(default)s)",
        )
    add_up_options(up)
    return result


def add_up_options(up: argparse.ArgumentParser) -> None:
    def add(field: str, kind: Callable[[str], object], metavar: str, text: str) -> None:
        # argparse applies `kind` to a default that is a string, as those of the environment are.
        flag = FLAGS[field]
        otherwise = getattr(Options, field)
        up.add_argument(
            flag,
            dest=field,
            type=kind,
            metavar=metavar,
            default=from_environment(flag),
            help=f"{text} ({'unset' if otherwise is None else otherwise})",
        )

    def add_switch(field: str, text: str) -> None:
        flag = FLAGS[field]
        value = from_environment(flag)
        up.add_argument(
            flag,
            dest=field,
            action=argparse.BooleanOptionalAction,
            default=None if value is None else switch(up, flag, value),
            help=text,
        )

    add("nodes", number(1, 48), "N", "nodes")
    add("cpus", number(1, 1024), "N", "CPUs each node claims to have")
    add("gpus", number(0, 64), "N", "pretended GPUs of each node")
    add("grace_seconds", number(0, 3600), "SECONDS", "GraceTime of partition low")
    add("requeue_exit", number(1, 255), "CODE", "RequeueExit, the exit code that asks for a requeue")
    add("proctrack", one_of(*PROCTRACKS), "|".join(PROCTRACKS), "ProctrackType")
    add_switch("preempt_send_user_signal", "preemption sends the job's own --signal")
    add_switch("accounting", "with slurmdbd and MariaDB, so that sacct works")


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of Options that were set."""
    values = {field: getattr(arguments, field) for field in FLAGS}
    return {field: value for field, value in values.items() if value is not None}


def from_environment(flag: str) -> str | None:
    """Unset and empty are the same."""
    name = flag.lstrip("-").replace("-", "_").upper()
    return os.environ.get(f"AUTORESUME_CLUSTER_{name}") or None


def number(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return convert


def one_of(*names: str) -> Callable[[str], str]:
    # argparse's own `choices` does not look at defaults, where the environment comes in.
    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return convert


def switch(up: argparse.ArgumentParser, flag: str, text: str) -> bool:
    if text.lower() not in ("0", "1", "no", "yes", "false", "true"):
        up.error(f"the environment's value for {flag} is {text!r}: neither 0 nor 1")
    return text.lower() in ("1", "yes", "true")
