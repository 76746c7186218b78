"""autoresume status: the life of a run, at any time, from any machine that sees its directory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autoresume.audit import verdict
from autoresume.checkpoint import incarnation, requests
from autoresume.checkpoint.discover import list_checkpoints
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.cli import jobs
from autoresume.cli.common import age, emit, lives, open_run, seconds_in_words, tasks_of
from autoresume.errors import AutoresumeError, UsageError
from autoresume.format import names
from autoresume.node import conclusion, verdicts
from autoresume.slurm.job import JobView
from autoresume.storage.local import LocalStorage

_WATCH_SECONDS = 2.0
_LIVES_SHOWN = 8


@click.command()
@click.argument("run", type=click.Path(file_okay=False), default=None, required=False)
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object (a line for each run without RUN).")
def command(run: str | None, watch: bool, as_json: bool) -> None:
    """What the run in the directory RUN is doing: its state, progress, lives, checkpoints and budgets.

    Without RUN: a line for each run below ./runs; of an array: a line for each task.
    """
    if run is None:
        _all([LocalStorage(path.parent) for path in sorted(Path("runs").glob(f"**/{names.RUN}"))], as_json)
        return
    storage, _ = open_run(run)
    tasks = tasks_of(run)
    if tasks:
        _all(tasks, as_json)
        return
    if as_json:
        sys.stdout.write(json.dumps(describe(storage), default=str) + "\n")
        return
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False)
    if not watch:
        console.print(_table(run, describe(storage)))
        return
    if not console.is_terminal:
        while True:  # for a file, or another program: one table after the other
            console.print(_table(run, describe(storage)))
            sys.stdout.flush()
            time.sleep(_WATCH_SECONDS)
    try:
        with Live(_table(run, describe(storage)), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(_WATCH_SECONDS)
                live.update(_table(run, describe(storage)), refresh=True)
    except KeyboardInterrupt:
        return


def _all(storages: Sequence[LocalStorage], as_json: bool) -> None:
    rows = []
    for storage in storages:
        try:
            found = describe(storage)
        except (AutoresumeError, OSError, ValueError) as error:
            found = {"state": f"can't be read: {error}"}
        rows.append({"run": str(storage.root), **found})
    if not rows:
        raise UsageError("there are no runs below ./runs; give the run's directory")
    columns = [("run", "run"), ("state", "state"), ("step", "step"), ("lives", "lives"), ("why", "why")]
    emit(as_json, rows, columns, f"{len(rows)} runs")


# -- what there is to say ---------------------------------------------------------------------------


def describe(storage: LocalStorage) -> dict[str, Any]:
    """Everything about a run; JSON-ready."""
    records = incarnation.history(storage)
    views, slurm_problem = jobs.active_if_known(storage)
    progress = _progress(storage)
    last = records[-1] if records else None
    state, why = _state(storage, last, views)
    committed = [name for name in list_checkpoints(storage) if storage.size(name.manifest) is not None]
    training = last is not None and last.ended is None and progress.get("incarnation") == last.number
    said = [progress.get("step"), last.ended.get("step") if last and last.ended else None]
    reached = [step for step in [*said, committed[0].step if committed else None] if step is not None]
    found: dict[str, Any] = {
        "state": state,
        "why": why,
        "step": max(reached, default=None),
        "epoch": progress.get("epoch"),
        "step_seconds": progress.get("step_seconds"),
        "seen": progress.get("time"),
        "lives": len(records),
        "history": [_life(record) for record in records[-_LIVES_SHOWN:]],
        "checkpoint": str(committed[0]) if committed else None,
        "checkpoint_time": _time_of(storage, committed[0].manifest) if committed else None,
        "jobs": [
            {"job": view.spelled, "state": view.state, "reason": view.reason, "nodes": view.nodes, "end": view.end_time}
            for view in views
        ],
        "slurm": slurm_problem,
        "save_cost_seconds": progress.get("save_cost_seconds"),
        "next_save": progress.get("next_save") if training else None,
        "save_durable_seconds": progress.get("save_durable_seconds"),
        "save_every_seconds": progress.get("save_every_seconds"),
        "failure_seconds": progress.get("failure_seconds"),
        "budgets": _budgets(storage, None if last is None or last.ended else last.number),
        "retrained": verdict.summary(verdict.read(storage.root)),
        "stop_asked": requests.stop_requested(storage),
    }
    return found


def _state(storage: LocalStorage, last: Incarnation | None, views: list[JobView]) -> tuple[str, str]:
    running = [view for view in views if view.state in ("RUNNING", "COMPLETING")]
    pending = [view for view in views if view.state not in ("RUNNING", "COMPLETING")]
    if last is not None and last.ended is None and lives(storage, last):
        if last.began.get("step") is None:
            return "starting", f"life {last.number} on {last.host}"
        return "training", f"life {last.number} on {last.host}"
    if running:
        return "starting", f"job {running[0].spelled} runs on {running[0].nodes}, and has not claimed the run yet"
    if pending:
        return "waiting", f"job {pending[0].spelled} is {pending[0].state.lower()} ({pending[0].reason})"
    if last is None:
        return "new", "it has never been started"
    if last.ended is None:
        return "dead", f"life {last.number} on {last.host} gives no sign, and nobody wrote down how it ended"
    said = str(last.ended.get("then") or last.ended.get("why") or "")
    if last.ended["how"] == "finished":
        return "finished", f"after step {last.ended['step']}"
    return str(last.ended["how"]), said


def _progress(storage: LocalStorage) -> dict[str, Any]:
    try:
        value = json.loads(storage.read(names.PROGRESS))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _time_of(storage: LocalStorage, file: str) -> float | None:
    try:
        return storage.path(file).stat().st_mtime
    except OSError:
        return None


def _life(record: Incarnation) -> dict[str, Any]:
    ended = record.ended or {}
    return {
        "life": record.number,
        "began": record.began.get("step"),
        "ended": ended.get("step"),
        "cause": ended.get("cause") or ended.get("how"),
        "why": ended.get("why"),
        "then": ended.get("then"),
        "host": record.host,
        "job": record.job.get("id"),
        "seconds": round(float(ended["time"]) - float(record.began["time"]), 1) if ended.get("time") else None,
    }


def _budgets(storage: LocalStorage, living: int | None) -> dict[str, str]:
    """Causes that were met within a day: how often, of how many. A life that goes on has none."""
    past = [life for life in conclusion.past_lives(storage) if living is None or life.number != living]
    found = {}
    for cause, budget in verdicts.BUDGETS.items():
        count = verdicts.within_a_day(past, cause, time.time())
        if count:
            found[cause.value] = f"{count} of {'any number' if budget is None else budget}"
    return found


# -- how it looks -----------------------------------------------------------------------------------


def _table(run: str, found: dict[str, Any]) -> Table:
    table = Table(title=run, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")

    def line(name: str, value: str | None) -> None:
        if value:
            table.add_row(name, Text(value))

    line("state", f"{found['state']}: {found['why']}" if found["why"] else found["state"])
    if found["stop_asked"]:
        line("", f"asked to stop: {found['stop_asked']}")
    line("Slurm", found["slurm"])
    for job in found["jobs"]:
        left = (
            f", {seconds_in_words(job['end'] - time.time())} left" if job["end"] and job["state"] == "RUNNING" else ""
        )
        line("job", f"{job['job']} {job['state'].lower()} {job['nodes']}{left}")
    if found["step"] is not None:
        pace = f", {found['step_seconds']:.3g} s a step" if found["step_seconds"] else ""
        seen = f", seen {age(found['seen'])} ago" if found["seen"] else ""
        epoch = f" (epoch {found['epoch']})" if found["epoch"] is not None else ""
        line("progress", f"step {found['step']}{epoch}{pace}{seen}")
    if found["checkpoint"]:
        line("checkpoint", f"{found['checkpoint']}, {age(found['checkpoint_time'])} ago")
    if found["next_save"]:
        line("next save", f"{found['next_save']}{_reasons(found)}")
    line("budgets", ", ".join(f"{cause}: {count}" for cause, count in found["budgets"].items()))
    line("trained again", found["retrained"])
    line("lives", str(found["lives"]))
    for life in found["history"]:
        span = f"{_shown(life['began'])} to {_shown(life['ended'])}"
        took = f", {seconds_in_words(life['seconds'])}" if life["seconds"] is not None else ""
        why = f": {life['why']}" if life["why"] else ""
        line(f"  {life['life']}", f"steps {span}{took}, {life['cause'] or 'running'}{why}")
    return table


def _reasons(found: dict[str, Any]) -> str:
    """What the time of the next save follows from, as far as it is known."""
    words = []
    if found["save_cost_seconds"]:
        words.append(f"a save stops training for {found['save_cost_seconds']:.2g} s")
    if found["save_durable_seconds"]:
        words.append(f"is durable after {found['save_durable_seconds']:.2g} s")
    if found["failure_seconds"] and found["save_every_seconds"]:
        between = seconds_in_words(found["failure_seconds"])
        words.append(f"{between} lie between failures: every {seconds_in_words(found['save_every_seconds'])}")
    return "".join(f"; {word}" for word in words[:1]) + "".join(f", {word}" for word in words[1:])


def _shown(step: Any) -> str:
    return "?" if step is None else str(step)
