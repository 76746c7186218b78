"""Control groups: can Slurm track a job's processes with them here, and what did it leave in them?

Of the older kind (v1) it needs the freezer, where it makes `slurm_NODE/uid_U/job_J/...`; of the
newer (v2) it needs nothing but the right to make `system.slice/NODE_slurmstepd.scope/job_J/...`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from one_machine.plan import Plan

MOUNTPOINT = Path("/sys/fs/cgroup")
FREEZER = MOUNTPOINT / "freezer"
SYSTEM_SLICE = MOUNTPOINT / "system.slice"


def usable_plugin() -> str | None:
    """Slurm's name for the control groups that this user may use, or None."""
    if os.getuid() != 0:
        return None
    if can_create_group(FREEZER):
        return "cgroup/v1"
    # The root of a v1 tree has no cgroup.controllers, nor has a hybrid's mountpoint.
    if (MOUNTPOINT / "cgroup.controllers").exists() and can_create_group(MOUNTPOINT):
        return "cgroup/v2"
    return None


def can_create_group(parent: Path) -> bool:
    """Containers often mount control groups read-only, so only trying tells."""
    if not (parent / "cgroup.procs").exists():
        return False
    probe = parent / f"one_machine_probe_{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


def prepare(plan: Plan) -> None:
    """Without systemd nobody has made the group that Slurm puts its own into."""
    if plan.cgroup_plugin == "cgroup/v2":
        SYSTEM_SLICE.mkdir(exist_ok=True)


def node_groups(plan: Plan) -> Iterator[Path]:
    """The group of each node; clusters that live at the same time share them."""
    for node in plan.nodes:
        if plan.cgroup_plugin == "cgroup/v1":
            yield FREEZER / f"slurm_{node}"
        elif plan.cgroup_plugin == "cgroup/v2":
            yield SYSTEM_SLICE / f"{node}_slurmstepd.scope"


def job_groups(plan: Plan) -> Iterator[Path]:
    for node_group in node_groups(plan):
        for group in (*node_group.glob("job_*"), *node_group.glob("uid_*/job_*")):
            number = group.name.removeprefix("job_")
            if number.isdigit() and plan.owns_job(int(number)):
                yield group


def members(plan: Plan) -> Iterator[int]:
    """Pids in the groups of this cluster's jobs."""
    for group in job_groups(plan):
        for procs in group.rglob("cgroup.procs"):
            try:
                yield from map(int, procs.read_text().split())
            except OSError:  # the step has just ended, its group is gone
                continue


def thaw(plan: Plan) -> None:
    """In a frozen v1 group SIGKILL waits until it is thawed."""
    for group in job_groups(plan):
        for state in group.rglob("freezer.state"):
            try:
                state.write_text("THAWED")
            except OSError:
                continue


def remove(plan: Plan) -> None:
    """Remove this cluster's groups, and the shared ones if no other cluster is in them."""
    for group in job_groups(plan):
        for directory, _, _ in os.walk(group, topdown=False):
            remove_if_empty(Path(directory))
    for node_group in node_groups(plan):
        # In v1 the users' groups; in v2 `system`, and `slurmd`, where that daemon lives.
        for shared in (*node_group.glob("*/"), node_group):
            remove_if_empty(shared)
    if plan.cgroup_plugin == "cgroup/v2":
        remove_if_empty(SYSTEM_SLICE)


def remove_if_empty(group: Path) -> None:
    with suppress(OSError):  # gone already, or not only this cluster's
        group.rmdir()
