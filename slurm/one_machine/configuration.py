"""The text of every configuration file, from the plan alone.

Slurm's clients stop at a key that they do not know, so only keys that all of them know (22.05 and
later) may be written, and none for its own sake: what is not here has its default.
"""

from __future__ import annotations

from one_machine.layout import Layout
from one_machine.plan import Plan


def slurm_conf(plan: Plan, layout: Layout) -> str:
    return "\n".join(
        [
            *identity(plan, layout),
            *places(layout),
            *pace(),
            *tracking(plan),
            *preemption(plan),
            *accounting(plan, layout),
            *nodes(plan),
            "",
        ]
    )


def identity(plan: Plan, layout: Layout) -> list[str]:
    return [
        f"ClusterName={plan.name}",
        f"SlurmUser={plan.user}",
        f"SlurmdUser={plan.user}",
        # The address in parentheses spares everybody the look-up of the host's name.
        f"SlurmctldHost={plan.host}(127.0.0.1)",
        f"SlurmctldPort={plan.controller_port}",
        # cred_expire is also how long a requeued job waits; below 5 it would be 120.
        f"AuthInfo=socket={layout.munge_socket},cred_expire=5",
        f"FirstJobId={plan.first_job_id}",
    ]


def places(layout: Layout) -> list[str]:
    return [
        f"StateSaveLocation={layout.state}",
        f"SlurmdSpoolDir={layout.spool}/%n",
        f"SlurmctldPidFile={layout.state}/slurmctld.pid",
        f"SlurmdPidFile={layout.spool}/%n.pid",
        f"SlurmctldLogFile={layout.log('slurmctld')}",
        f"SlurmdLogFile={layout.log('slurmd-%n')}",
        # Nobody wants mails from a test cluster, and a machine without `mail` is no error.
        "MailProg=/bin/true",
    ]


def pace() -> list[str]:
    """Everything at once: a laptop has no thousand jobs to be fair to."""
    return [
        "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0",
        "KillWait=5",
        "MessageTimeout=5",
        "SlurmdTimeout=15",
        # Finished jobs stay visible to scontrol for an hour.
        "MinJobAge=3600",
        # A node that was down comes back by itself as soon as its slurmd does.
        "ReturnToService=2",
    ]


def tracking(plan: Plan) -> list[str]:
    return [
        f"ProctrackType=proctrack/{plan.proctrack}",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=200",
    ]


def preemption(plan: Plan) -> list[str]:
    lines = ["PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE", "JobRequeue=1"]
    if plan.options.requeue_exit is not None:
        lines.append(f"RequeueExit={plan.options.requeue_exit}")
    if plan.options.preempt_send_user_signal:
        lines.append("SlurmctldParameters=preempt_send_user_signal")
    return lines


def accounting(plan: Plan, layout: Layout) -> list[str]:
    if not plan.options.accounting:
        return []
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={plan.database_port}",
        # Towards slurmdbd, AuthInfo's socket is not looked at.
        f"AccountingStoragePass={layout.munge_socket}",
    ]


def nodes(plan: Plan) -> list[str]:
    options = plan.options
    gpus = f" Gres=gpu:{options.gpus}" if options.gpus else ""
    everywhere = f"Nodes={plan.nodes_expression} MaxTime=INFINITE State=UP"
    return [
        *(["GresTypes=gpu"] if options.gpus else []),
        # Believe the CPUs and the memory below: each node claims this machine's for itself.
        "SlurmdParameters=config_overrides",
        *(
            f"NodeName={node} NodeHostname={plan.host} NodeAddr=127.0.0.1 Port={port}"
            f" CPUs={options.cpus} RealMemory={2000 * options.cpus}{gpus}"
            for node, port in plan.node_ports.items()
        ),
        f"PartitionName=low {everywhere} Default=YES PriorityTier=1 PreemptMode=REQUEUE"
        f" GraceTime={options.grace_seconds}",
        f"PartitionName=high {everywhere} PriorityTier=10 PreemptMode=OFF",
    ]


def cgroup_conf(plan: Plan) -> str:
    if plan.cgroup_plugin == "cgroup/v2":
        # These nodes are no services of systemd, which would be asked over D-Bus for their groups.
        return "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n"
    # Even slurmd with linuxproc loads a plugin, and found by itself, v2 fails without D-Bus or
    # root. v1 does nothing until it is used.
    return "CgroupPlugin=cgroup/v1\n"


def gres_conf(plan: Plan, layout: Layout) -> str:
    last = plan.options.gpus - 1
    return f"NodeName={plan.nodes_expression} Name=gpu File={layout.gpus}/gpu[0-{last}]\n"


def slurmdbd_conf(plan: Plan, layout: Layout) -> str:
    return "\n".join(
        [
            "AuthType=auth/munge",
            f"AuthInfo=socket={layout.munge_socket}",
            f"DbdHost={plan.host}",
            "DbdAddr=127.0.0.1",
            f"DbdPort={plan.database_port}",
            f"SlurmUser={plan.user}",
            f"PidFile={layout.database}/slurmdbd.pid",
            f"LogFile={layout.log('slurmdbd')}",
            "StorageType=accounting_storage/mysql",
            "StorageHost=localhost",
            "StorageUser=root",
            "StorageLoc=slurm_acct_db",
            "",
        ]
    )
