"""autoresume node: the daemon around a command."""

from __future__ import annotations

import logging
import os
import sys

import click

from autoresume.errors import UsageError
from autoresume.node.daemon import NodeDaemon


def say(prefix: str) -> None:
    """Say what happens on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{prefix}: %(message)s"))
    logger = logging.getLogger("autoresume")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--ranks", default=1, show_default=True, help="Ranks that COMMAND starts on this node.")
@click.option("--grace", default=30.0, show_default=True, help="Seconds between a stop signal and the kill.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def command(ranks: int, grace: float, command: tuple[str, ...]) -> None:
    """Run COMMAND, which starts the ranks of this node, and outlive them.

    Exit codes: 0 finished, 75 interrupted and resumable, anything else failed.
    """
    if ranks < 1:
        raise UsageError(f"--ranks {ranks}: a node has at least one rank")
    say("autoresume node")
    sys.exit(NodeDaemon(command, ranks, grace, os.environ).run())
