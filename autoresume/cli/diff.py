"""autoresume diff: two checkpoints, and what is another in them."""

from __future__ import annotations

import importlib
import sys
from dataclasses import asdict

import click

from autoresume.cli.common import emit

_MOST_ROWS = 100


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--only", default="", metavar="TEXT", help="Names that begin so, e.g. model/ or run/rng.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for each name that differs.")
def command(a: str, b: str, only: str, as_json: bool) -> None:
    """Compare two checkpoints: A and B are runs, checkpoints or files, with @SELECTOR behind a run (runs/x@U1200).

    Tensors, values, and the generators of each rank. Exit code 0 if nothing differs, 1 if something does.
    """
    comparing = importlib.import_module("autoresume.restore.diff")
    values = [
        {key: value for key, value in comparing.read_values(text).items() if key.startswith(only)} for text in (a, b)
    ]
    found = comparing.compare(*values)
    rows = [asdict(one) for one in found]
    if not as_json:
        for row in rows:
            if row["absolute"] is not None:
                row["a"] = f"{row['elements']:,} of {row['of']:,} elements"
                row["b"] = f"by at most {row['absolute']:.3g} (relative {row['relative']:.2g})"
    columns = [("name", "name"), ("what", "differs in"), ("a", "A"), ("b", "B")]
    same = len(set(values[0]) & set(values[1])) - sum(not row["what"].startswith("only") for row in rows)
    shown = rows if as_json else rows[:_MOST_ROWS]
    if rows or not as_json:
        emit(as_json, shown, columns, f"{len(rows)} differ, {same} are equal")
    if len(shown) < len(rows):
        click.echo(f"... and {len(rows) - len(shown)} more (--json shows all)")
    sys.exit(1 if rows else 0)
