"""Finding every process of this cluster's jobs, wherever it has strayed.

Slurm itself can lose them: without control groups a job's orphans outlive it, and a killed slurmd
leaves its steps behind. They are told by their control group, by the cluster's name, which Slurm
puts into each job's environment, and, for Slurm's own, by the configuration they were started with.
"""

from __future__ import annotations

from one_machine import cgroups, processes
from one_machine.layout import Layout
from one_machine.plan import Plan
from one_machine.processes import Process

# With the cluster's configuration, and of no use without the cluster. Daemons are known by their
# pid files, but a command may have been interrupted before it wrote one.
DAEMONS = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmscriptd", "slurmd", "slurmstepd"}
CLIENTS = {"srun", "salloc", "sbatch"}


def processes_of(plan: Plan, layout: Layout) -> list[Process]:
    grouped = set(cgroups.members(plan))
    return [
        process
        for pid in processes.everything()
        if pid in grouped or is_marked(pid, plan, layout)
        if (process := processes.find(pid))
    ]


def is_marked(pid: int, plan: Plan, layout: Layout) -> bool:
    environment = processes.environment_of(pid)
    if f"SLURM_CLUSTER_NAME={plan.name}".encode() in environment:
        return True
    configured = f"SLURM_CONF={layout.slurm_conf}".encode() in environment
    return configured and processes.command_name(pid) in DAEMONS | CLIENTS
