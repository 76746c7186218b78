"""autoresume export: a model in a form that others read."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from autoresume.cli.common import bytes_of
from autoresume.errors import UsageError

_SUFFIXES = {"safetensors": ".safetensors", "torch": ".pt", "dcp": "-dcp", "huggingface": "-hf"}


@click.command()
@click.argument("source")
@click.argument("checkpoint", default="latest")
@click.option("--to", "target", default=None, metavar="PATH", help="Where to write it; a folder for --name.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(_SUFFIXES)),
    default="safetensors",
    show_default=True,
    help="A file, or the folder of another library.",
)
@click.option("--model", default=None, help="Which of several models.")
@click.option("--name", "template", default=None, metavar="TEMPLATE", help="A name such as {model}_cp={checkpoint}.th")
@click.option("--field", "fields", multiple=True, metavar="NAME=VALUE", help="A field for the template.")
@click.option("--max-shard-size", default="5GB", show_default=True, help="Of a file, in the Hugging Face form.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def command(
    source: str,
    checkpoint: str,
    target: str | None,
    kind: str,
    model: str | None,
    template: str | None,
    fields: tuple[str, ...],
    max_shard_size: str,
    force: bool,
) -> None:
    """Write a model's weights from SOURCE (a run, a checkpoint, a file) as one file, or a folder.

    CHECKPOINT is latest, best, best.METRIC, E3, U1200, S38400, a tag or a name. Fields of a template: model, info,
    checkpoint, epoch, step, samples, run, run_id, tag, timestamp.
    """
    exporting = importlib.import_module("autoresume.restore.export")
    found, about = exporting.find_weights(source, checkpoint)
    tensors = exporting.pick_model(found, model)
    name = model or (next(iter(found.models)) if len(found.models) == 1 else "") or "model"
    given = dict(_pair(word) for word in fields)
    if template is not None:
        path = Path(target or ".") / exporting.file_name(template, {"model": name, **about, **given})
    else:
        path = Path(target or f"{about['run']}-{about['checkpoint']}{_SUFFIXES[kind]}")
    written = exporting.export(tensors, about, path, kind, bytes_of("--max-shard-size", max_shard_size), force)
    count = sum(tensor.numel() for tensor in tensors.values())
    click.echo(f"{written}: {len(tensors)} tensors, {count:,} numbers, from {found.kind}")


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise UsageError(f"--field {word}: give NAME=VALUE")
    return name, value
