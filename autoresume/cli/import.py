"""autoresume import: somebody else's weights as a run that others begin from."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from autoresume.cli.node import say


@click.command()
@click.argument("source")
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="The run directory to make.")
@click.option("--model", default=None, help="Which of several models; or what to call the one.")
def command(source: str, target: Path, model: str | None) -> None:
    """Make a run directory of the weights in SOURCE (a file, a folder, a URL), with one checkpoint, after step 0."""
    say("autoresume import")
    click.echo(importlib.import_module("autoresume.run.import_weights").import_weights(source, target, model))
