"""What a submission is told of its partition."""

from __future__ import annotations

import pytest

from autoresume.slurm import remarks
from tests.slurm.conftest import Programs

CONFIGURATION = "PreemptType = preempt/partition_prio\nPreemptMode = REQUEUE\nKillWait = {wait} sec"
PARTITION = "PartitionName={name} Default={default} State=UP GraceTime={grace} PreemptMode={mode} MaxTime=UNLIMITED"


def says(programs: Programs, mode: str, grace: int = 60, wait: int = 30) -> None:
    low = PARTITION.format(name="low", default="YES", grace=grace, mode=mode)
    high = PARTITION.format(name="high", default="NO", grace=0, mode="OFF")
    partitions, configuration = f"{low}\n{high}", CONFIGURATION.format(wait=wait)
    programs.make("scontrol", f"case \"$*\" in *config*) echo '{configuration}';; *) echo '{partitions}';; esac")


@pytest.mark.parametrize(
    ("mode", "grace", "wait", "told"),
    [
        ("REQUEUE", 60, 30, []),
        ("REQUEUE", 0, 30, []),
        ("CANCEL", 60, 30, ["when preempted"]),
        ("SUSPEND", 60, 30, ["when preempted"]),
        ("CANCEL", 0, 0, ["when preempted", "grace"]),
    ],
)
def test_a_partition_that_does_not_requeue_is_told_of(
    programs: Programs, mode: str, grace: int, wait: int, told: list[str]
) -> None:
    """At the submission, where something can still be done; what is as it should be is not."""
    says(programs, mode, grace, wait)
    assert [remark.name for remark in remarks.of_partition(None)] == told
    assert [remark.name for remark in remarks.of_partition("low,high")] == told
    assert remarks.of_partition("high") == []


def test_a_submission_does_not_fail_for_want_of_a_remark(programs: Programs) -> None:
    """Where Slurm does not answer, or does not know the partition, nothing is said."""
    programs.make("scontrol", "echo no >&2; exit 1")
    assert remarks.of_partition("low") == []
    says(programs, "CANCEL")
    assert remarks.of_partition("other") == []
