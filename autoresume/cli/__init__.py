"""One command a file. Importing it must stay quick: no torch, and each command is loaded when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from autoresume import __version__
from autoresume.errors import AutoresumeError

_COMMANDS = {
    "run": "Train on this machine, with the node daemon, and again after each preemption.",
    "sbatch": "Submit a training to Slurm, once: the job looks after itself.",
    "status": "What a run is doing: state, progress, lives, checkpoints, budgets.",
    "logs": "What a run's jobs have said, across its lives.",
    "stop": "Have a run save and leave, wherever it trains.",
    "cancel": "Cancel a run's jobs.",
    "requeue": "Have a run's job start anew.",
    "node": "The node daemon: run a command as its ranks' parent (what a batch job starts on each node).",
    "doctor": "Whether a preemption would be survived: looks at the cluster, this machine and the run directory.",
    "bench": "What a save costs on this disk, whether a last one fits the grace time, and how often to save.",
    "ls": "The checkpoints of a run, and whether they are valid.",
    "show": "One checkpoint: its tensors and its state.",
    "drill": "Whether a script really resumes: it is interrupted on purpose, and compared step by step.",
    "rehearse": "Drill the first steps of a new run, in a folder that is thrown away.",
    "diff": "Two checkpoints: which values differ, and by how much.",
    "tag": "Give a checkpoint a name that keeps it.",
    "publish": "Give a run's loggers what they miss.",
    "export": "Write a model's weights in a form that others read.",
    "import": "Make a run of somebody else's weights.",
    "history": "The incarnations of a run: how each began and ended, and what was lost.",
    "verify": "Read every byte of a run's checkpoints against its digests.",
    "prune": "Delete checkpoints that are not needed any more.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"autoresume.cli.{name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        import difflib

        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            ctx.fail(f"no such command: {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autoresume")
def cli() -> None:
    """Training that is preempted goes on bit for bit."""


def main() -> None:
    """The command `autoresume`."""
    try:
        cli(prog_name="autoresume")
    except AutoresumeError as error:
        click.echo(f"autoresume: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
