"""autoresume node: the daemon around a command."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

import click

from autoresume.errors import UsageError
from autoresume.format.digest import signing_key
from autoresume.node import batch_job
from autoresume.node.batch_job import SlurmCluster
from autoresume.node.daemon import NodeDaemon
from autoresume.node.plan import Plan
from autoresume.node.verdicts import parse_budget
from autoresume.restore.beginning import default_run_folder
from autoresume.slurm import environment as slurm_environment
from autoresume.slurm.environment import Task

_LAUNCHER = [sys.executable, "-m", "autoresume.ranks.launcher"]
_TORCHRUN_MODULES = ("torch.distributed.run", "torch.distributed.launch")


def say(prefix: str) -> None:
    """Say what happens on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{prefix}: %(message)s"))
    logger = logging.getLogger("autoresume")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--ranks", type=int, default=None, help="Ranks that COMMAND starts on this node. Default: as it says.")
@click.option("--grace", default=30.0, show_default=True, help="Seconds between a stop signal and the kill.")
@click.option("--nodes", type=int, default=None, help="Nodes of the job. Default: Slurm's tasks, or 1.")
@click.option("--node-rank", type=int, default=None, help="Which of them this is. Default: Slurm's task.")
@click.option("--spares", type=int, default=0, show_default=True, help="Nodes held back for others that fail.")
@click.option("--meeting", type=click.Path(file_okay=False), default=None, help="Folder that all nodes share.")
@click.option("--restarts/--no-restarts", default=None, help="Start ranks that crashed again in this job.")
@click.option("--budget", multiple=True, metavar="CAUSE=N", help="How many lives may end so within a day.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    ranks: int | None,
    grace: float,
    nodes: int | None,
    node_rank: int | None,
    spares: int,
    meeting: str | None,
    restarts: bool | None,
    budget: tuple[str, ...],
    command: tuple[str, ...],
) -> None:
    """Run COMMAND, which starts the ranks of this node, and outlive them.

    COMMAND is `torchrun [options] train.py`, or `python train.py` for a rank of its own. Under srun the nodes find
    each other; elsewhere --nodes, --node-rank and --meeting tell them.

    Exit codes: 0 finished, 75 interrupted and resumable, 76 the same but at its user's wish, 70 when trying again
    would mend nothing, anything else failed.
    """
    signing_key()
    task = slurm_environment.read() if nodes is None else None
    if task is not None and not task.in_step:
        raise UsageError(
            "autoresume node is to be started by srun: a process that the batch script starts by itself gets no signal "
            "from Slurm. Write: srun autoresume node -- " + " ".join(command)
        )
    words, bare = launcher_of(list(command))
    ranks = ranks if ranks is not None else 1 if bare else ranks_of(words)
    nodes = nodes if nodes is not None else task.tasks if task else 1
    node_rank = node_rank if node_rank is not None else task.rank if task else 0
    _check(ranks, nodes, node_rank, spares, bare, task)
    folder = Path(meeting) if meeting else _job_folder(list(command), task)
    if nodes > 1 and folder is None:
        raise UsageError("several nodes need a folder to meet in: give --meeting, or AUTORESUME_RUN_DIR")
    environment = dict(os.environ)
    if not bare:
        environment.setdefault("PET_NPROC_PER_NODE", str(ranks))
    elif task is not None:
        environment["LOCAL_RANK"] = str(task.local_rank)
    say("autoresume node" if nodes == 1 else f"autoresume node {node_rank}")
    cluster = None
    if task is not None and node_rank == 0:
        cluster = SlurmCluster(task, folder, successor="AUTORESUME_SUCCESSOR" in os.environ)
    plan = Plan(
        words,
        ranks,
        grace,
        environment,
        nodes=nodes,
        node_rank=node_rank,
        spares=spares,
        meeting=folder,
        run_folder=batch_job.run_folder_of(os.environ),
        bare=bare,
        restarts_here=task is not None if restarts is None else restarts,
        budgets=dict(parse_budget(word) for word in budget),
    )
    sys.exit(NodeDaemon(plan, cluster).run())


def _job_folder(command: list[str], task: Task | None) -> Path | None:
    """The job's own in the run directory, where there is a job, and the run is known."""
    run_folder = batch_job.run_folder_of(os.environ) or run_folder_of_command(command)
    return batch_job.job_folder(run_folder, task) if task is not None and run_folder is not None else None


def _check(ranks: int, nodes: int, node_rank: int, spares: int, bare: bool, task: Task | None) -> None:
    if ranks < 1:
        raise UsageError(f"--ranks {ranks}: a node has at least one rank")
    if not 0 <= node_rank < nodes:
        raise UsageError(f"--node-rank {node_rank} of --nodes {nodes}: give 0 to {nodes - 1}")
    if not 0 <= spares < nodes:
        raise UsageError(f"--spares {spares} of --nodes {nodes}: at least one node has to train")
    if task is not None and task.local_tasks > 1 and not bare:
        raise UsageError(
            f"srun has started {task.local_tasks} tasks on this node, and each would start a torchrun of its own. Give "
            "srun --ntasks-per-node=1, or start a rank a task: srun autoresume node -- python train.py"
        )


def launcher_of(words: list[str]) -> tuple[list[str], bool]:
    """The command with torchrun made deaf to signals; and whether it is a rank itself."""
    if Path(words[0]).name == "torchrun":
        return [*_LAUNCHER, *words[1:]], False
    if re.fullmatch(r"python[\d.]*", Path(words[0]).name) and "-m" in words[:-1]:
        module = words[words.index("-m") + 1]
        if module in _TORCHRUN_MODULES:
            return [words[0], *_LAUNCHER[1:], *words[words.index("-m") + 2 :]], False
        if module == "autoresume.ranks.launcher":
            return words, False
    return words, bool(re.fullmatch(r"python[\d.]*", Path(words[0]).name))


def ranks_of(words: list[str]) -> int:
    """How many ranks a launcher's command starts on a node: as it says, else one for each GPU of the job, else one."""
    text = " ".join(words)
    match = re.search(r"--nproc[-_]per[-_]node[= ](\S+)", text)
    said = match.group(1) if match else os.environ.get("PET_NPROC_PER_NODE", "")
    if said.isdigit():
        return int(said)
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if said in ("", "gpu", "auto") and gpus.isdigit() and int(gpus) > 0:
        return int(gpus)
    if said:
        raise UsageError(f"--nproc-per-node {said}: say how many ranks that is: autoresume node --ranks N")
    return 1


def run_folder_of_command(words: list[str]) -> Path | None:
    """Where the script of a command keeps its run by default: the first word that is a python file."""
    for index, word in enumerate(words):
        if word.endswith(".py") and Path(word).is_file():
            return default_run_folder(words[index:], Path.cwd())
    return None
