"""autoresume tag: give a checkpoint a name that keeps it."""

from __future__ import annotations

import click

from autoresume.checkpoint import tags
from autoresume.cli.common import open_run, pick
from autoresume.errors import UsageError


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.argument("tag")
@click.argument("checkpoint", default="latest")
@click.option("--remove", is_flag=True, help="Take the tag away.")
def command(run: str, tag: str, checkpoint: str, remove: bool) -> None:
    """Give CHECKPOINT of the directory RUN the name TAG: it is never deleted, and `restore.select=TAG` finds it.

    A tag that another checkpoint has moves to this one.
    """
    storage, _ = open_run(run)
    if remove:
        if not tags.remove_tag(storage, tag):
            there = sorted({one for given in tags.given_tags(storage).values() for one in given})
            raise UsageError(
                f"no checkpoint of {run} was given the tag {tag!r}; given were {', '.join(there) or 'none'}"
            )
        click.echo(f"{tag} is gone")
        return
    name = pick(storage, checkpoint)
    if storage.size(name.manifest) is None:
        raise UsageError(f"{name} was never committed, and can't be tagged")
    tags.add_tag(storage, name, tag)
    click.echo(f"{name} has the tag {tag}")
