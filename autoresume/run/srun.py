"""A rank that srun started by itself, without torchrun and without the node daemon: `srun python train.py`.

Law: what a launcher would have set is taken from Slurm's variables, and what a daemon would have done at the end is
done by rank 0: Slurm is asked what it wants, and the job is requeued by the same rules.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.incarnation import boot_id
from autoresume.errors import AgreementError
from autoresume.handoff.mailbox import NODE_FOLDER_VARIABLE
from autoresume.node import batch_job, link, verdicts
from autoresume.node.batch_job import SlurmCluster
from autoresume.node.causes import Cause
from autoresume.node.conclusion import LifeEnd, Means, conclude_life
from autoresume.slurm import environment as slurm_environment
from autoresume.slurm.environment import Task
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")

_MEETING_SECONDS = 600.0


def srun_task() -> Task | None:
    """The task that this rank is, if srun itself is its launcher."""
    if NODE_FOLDER_VARIABLE in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    task = slurm_environment.read()
    return task if task is not None and task.in_step else None


def set_rank_variables(run_folder: Path) -> None:
    """Set what torchrun would have set: rank, world size, and where rank 0 listens. Raises AgreementError.

    Rank 0 chooses a free port and tells of it in the run directory, so that jobs on one node don't meet.
    """
    task = srun_task()
    if task is None or task.tasks == 1 or "RANK" in os.environ:
        return
    os.environ.update(
        RANK=str(task.rank),
        WORLD_SIZE=str(task.tasks),
        LOCAL_RANK=str(task.local_rank),
        LOCAL_WORLD_SIZE=str(task.local_tasks),
    )
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return
    file = batch_job.job_folder(run_folder, task) / f"master-{os.environ.get('SLURM_STEP_ID', '0')}.json"
    if task.rank == 0:
        _publish(file)
    deadline = time.monotonic() + _MEETING_SECONDS
    while time.monotonic() < deadline:
        try:
            os.listdir(file.parent)  # NFS looks at a folder anew when it is listed
            where = json.loads(file.read_text())
            here = where["boot"] == boot_id() or not where["addresses"]
            os.environ["MASTER_ADDR"] = "127.0.0.1" if here else str(where["addresses"][0])
            os.environ["MASTER_PORT"] = str(where["port"])
            return
        except (OSError, ValueError, KeyError):
            time.sleep(0.1)
    raise AgreementError(
        f"rank {task.rank} can't find rank 0: {file} is not there after {_MEETING_SECONDS:.0f} s. The run directory "
        "must lie on a file system that all nodes share"
    )


def _publish(file: Path) -> None:
    where = {"boot": boot_id(), "addresses": link.addresses(), "port": link.free_port()}
    file.parent.mkdir(parents=True, exist_ok=True)
    temp = file.with_suffix(".tmp")
    temp.write_text(json.dumps(where))
    temp.rename(file)


def requeue_if_needed(run_folder: Path, why: str) -> None:
    """After an interrupted life of ranks without a daemon, on rank 0: the job is requeued if it should be."""
    task = srun_task()
    if task is None:
        return
    cluster = SlurmCluster(task, batch_job.job_folder(run_folder, task))
    notice = cluster.why_stopped(why)
    cause = notice.cause or Cause.SIGNAL
    newest = incarnation.numbers(LocalStorage(run_folder))[-1:]
    end = LifeEnd(cause, newest[0] if newest else None, stepped=True)
    verdict = conclude_life(run_folder, end, notice, Means(can_requeue=True))
    log.info("%s", verdict.why)
    if verdict.kind is verdicts.Kind.REQUEUE:
        cluster.requeue(verdict.why, verdict.exclude)
