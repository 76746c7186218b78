"""autoresume sbatch: submit a training once."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from autoresume.base import code_revision
from autoresume.cli import jobs
from autoresume.config import restore_request
from autoresume.config.restore_request import RestoreRequest
from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.node.verdicts import parse_budget
from autoresume.restore.beginning import default_run_folder
from autoresume.slurm import options, remarks, script, submit
from autoresume.slurm.commands import SlurmMissing, present
from autoresume.slurm.options import Parsed
from autoresume.slurm.script import Launch
from autoresume.storage.local import LocalStorage

_OURS = {
    "nproc": True,
    "run-dir": True,
    "dry-run": False,
    "snapshot-code": False,
    "setup": True,
    "env": True,
    "container": True,
    "spares": True,
    "budget": True,
    "successor": False,
    "rehearse": False,
    "again": False,
    "json": False,
    **{f"restore.{word}": True for word in restore_request.FIELDS},
}
_HELP = """Submit SCRIPT with its ARGUMENTS, once: the job looks after itself until it is finished.

    autoresume sbatch [OPTIONS] SCRIPT [ARGUMENTS]

Options: sbatch's (--nodes, --time, --partition, --gpus-per-node, --array, --dependency ...), and:

\b
  --nproc N          ranks on each node (default: --gpus-per-node, or 1)
  --run-dir DIR      where the run lives; all nodes must see it (default: runs/SCRIPT)
  --dry-run          print the batch script, and submit nothing
  --snapshot-code    train from a copy of the code, as it is now
  --setup LINE       a line of shell before the training, e.g. 'module load cuda' (may be repeated)
  --env NAME=VALUE   a variable for the training (may be repeated)
  --container WORDS  put before the daemon's command, e.g. 'apptainer exec --nv image.sif'
  --spares N         of --nodes, hold N back, for others that fail
  --budget CAUSE=N   how many lives may end so within a day (e.g. error=1)
  --successor        let a job submit the next one, where a requeue is denied
  --restore.mode M   what a new run takes over: finetune, hotstart or continue (see docs/restore.md); --restore.from X,
                     --restore.select X and the other words of `restore` alike
  --rehearse         drill the first steps of a new run in the job, on one node, before it is begun
  --again            submit although a job of this run is there
  --json             print the job for programs"""


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
    help=_HELP,
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(context: click.Context, words: tuple[str, ...]) -> None:
    if not words or "-h" in words[:1] or "--help" in words[:1]:
        click.echo(context.get_help())
        return
    submission = Submission.of(words)
    parsed = submission.parsed
    text = submission.text()  # what makes no sense is told first, with Slurm or without
    if "dry-run" in parsed.ours:
        click.echo(text, nl=False)
        return
    if not present("sbatch"):
        raise SlurmMissing(
            "there is no Slurm on this machine (no sbatch). `autoresume run` trains here, and is interrupted and "
            "resumed in the same way; slurm/cluster in the repository starts a cluster on one machine"
        )
    submission.refuse_a_second()
    job = submission.submit()
    partition = parsed.slurm.get("partition")
    for remark in remarks.of_partition(partition if isinstance(partition, str) else None):
        click.echo(f"autoresume: {remark.found}: {remark.means}. {remark.remedy}", err=True)
    if "json" in parsed.ours:
        sys.stdout.write(json.dumps({"job": job, "run": str(submission.run_folder)}) + "\n")
        return
    run = os.path.relpath(submission.run_folder)
    run = str(submission.run_folder) if run.startswith("..") else run
    click.echo(f"job {job}: {shlex.join(parsed.rest)} on {submission.where()}")
    click.echo(f"  run directory   {submission.run_folder}")
    click.echo(f"  follow it       autoresume status {run}     autoresume logs -f {run}")
    click.echo(f"  end it          autoresume stop {run} (saves first)     autoresume cancel {run}")


class Submission:
    """What is to be submitted, derived from the command line."""

    def __init__(self, parsed: Parsed, path: Path) -> None:
        self.parsed, self.path = parsed, path
        given = parsed.ours.get("run-dir")
        folder = Path(given[-1]) if given else default_run_folder(parsed.rest, Path.cwd(), self._restore())
        self.run_folder = (Path.cwd() / folder).absolute()
        self.storage = LocalStorage(self.run_folder)
        self.array = "array" in parsed.slurm
        if self.array and "successor" in parsed.ours:
            raise UsageError(
                "--successor can't be given with --array: each task would submit the whole array again. Submit the "
                "runs one by one, or without --successor"
            )
        self.nodes = str(parsed.slurm.get("nodes", "1"))
        self.ranks = self._ranks()
        self.spares = self._number("spares", 0)
        self.kept = self._kept()

    @classmethod
    def of(cls, words: Sequence[str]) -> Submission:
        """From a command line: options, the script, its arguments. Raises UsageError."""
        parsed = options.parse(words, _OURS)
        if not parsed.rest:
            raise UsageError("which script? autoresume sbatch [options] train.py [arguments]")
        path = Path(parsed.rest[0])
        if not path.is_file():
            raise UsageError(f"there is no script {parsed.rest[0]!r} in {Path.cwd()}")
        return cls(parsed, path)

    @property
    def world_size(self) -> int:
        """Ranks on all nodes; of a range of nodes, as "2-4", the least."""
        least = self.nodes.partition("-")[0]
        return self.ranks * ((int(least) if least.isdigit() else 1) - self.spares)

    def _number(self, name: str, otherwise: int) -> int:
        words = self.parsed.ours.get(name)
        if not words:
            return otherwise
        if not words[-1].isdigit():
            raise UsageError(f"--{name} {words[-1]}: give a number")
        return int(words[-1])

    def _ranks(self) -> int:
        gpus = str(self.parsed.slurm.get("gpus-per-node", "")).rpartition(":")[2]
        return max(1, self._number("nproc", int(gpus) if gpus.isdigit() else 1))

    def _restore(self) -> dict[str, str]:
        """What the options say about `restore`. Raises UsageError."""
        given = {word: self.parsed.ours[f"restore.{word}"][-1] for word in restore_request.FIELDS
                 if f"restore.{word}" in self.parsed.ours}  # fmt: skip
        RestoreRequest(**restore_request.merge_request(None, given, "the command line"))
        return given

    def _restore_variables(self) -> list[tuple[str, str]]:
        return [(restore_request.variable_name(word), value) for word, value in self._restore().items()]

    def _kept(self) -> Path:
        folder = self.run_folder / names.SUBMISSIONS
        taken = [int(file.stem) for file in folder.glob("*.sh") if file.stem.isdigit()] if folder.exists() else []
        return folder / f"{max(taken, default=0) + 1:04d}.sh"

    # -- the script -------------------------------------------------------------------------------

    def directives(self) -> dict[str, str | bool]:
        ours: dict[str, str | bool] = {
            "job-name": self.path.stem,
            "nodes": self.nodes,
            "ntasks-per-node": "1",
            "requeue": True,
            "open-mode": "append",
            "output": str(self.run_folder / names.LOGS / ("%A_%a.log" if self.array else "%j.log")),
        }
        if self.spares:
            ours["no-kill"] = True
        return {**ours, **self.parsed.slurm}

    def launch(self, path: str) -> Launch:
        container = shlex.split(" ".join(self.parsed.ours.get("container", [])))
        node = ["--spares", str(self.spares)] if self.spares else []
        for budget in self.parsed.ours.get("budget", []):
            parse_budget(budget)
            node += ["--budget", budget]
        return Launch(
            run_folder=str(self.run_folder),
            script=path,
            arguments=self.parsed.rest[1:],
            ranks=self.ranks,
            nodes=self.nodes,
            array=self.array,
            autoresume=["autoresume"] if container else [sys.executable, "-m", "autoresume"],
            python="python" if container else sys.executable,
            container=container,
            setup=self.parsed.ours.get("setup", []),
            environment=[*self._restore_variables(), *(_pair(word) for word in self.parsed.ours.get("env", []))],
            node_options=node,
            srun_options=["--no-kill"] if self.spares else [],
            submitted=str(self.kept),
            successor="successor" in self.parsed.ours,
            rehearse="rehearse" in self.parsed.ours,
        )

    def text(self) -> str:
        return submit.text(self.directives(), script.body(self.launch(self.parsed.rest[0])))

    def where(self) -> str:
        ranks = "rank" if self.ranks == 1 else "ranks"
        return f"{self.nodes} node{'s' if self.nodes != '1' else ''} with {self.ranks} {ranks} each"

    # -- submitting -------------------------------------------------------------------------------

    def refuse_a_second(self) -> None:
        """Two jobs of one run would wait for each other, or refuse to start."""
        if "again" in self.parsed.ours:
            return
        active = jobs.active(self.storage) if jobs.of_run(self.storage) else []
        if active:
            raise UsageError(
                f"job {active[0].spelled} of this run is {active[0].state.lower()}. It goes on by itself; "
                f"`autoresume cancel {self.run_folder}` ends it. To start another training, give another --run-dir"
            )

    def submit(self) -> str:
        launch = self.launch(self.parsed.rest[0])
        for folder in (names.SUBMISSIONS, names.LOGS):
            try:
                (self.run_folder / folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"the run directory {self.run_folder} can't be made: {error.strerror}") from error
        if "snapshot-code" in self.parsed.ours:
            copy = code_revision.snapshot(self.path, self.run_folder / "code" / self.kept.stem)
            launch = dataclasses.replace(launch, script=str(copy))
        job = submit.submit(self.directives(), script.body(launch), self.kept)
        record: dict[str, Any] = {
            "time": time.time(),
            "job": job,
            "command": sys.argv,
            "script": str(self.path.absolute()),
            "trained_from": launch.script,
            "arguments": self.parsed.rest[1:],
            "folder": str(Path.cwd()),
            "options": self.parsed.slurm,
            "array": self.array,
            "code": code_revision.fingerprint(self.path),
        }
        name = f"{names.SUBMISSIONS}/{self.kept.stem}.json"
        self.storage.write(name, json.dumps(record, indent=1).encode() + b"\n")
        return job


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--env {word}: give NAME=VALUE")
    return name, value
