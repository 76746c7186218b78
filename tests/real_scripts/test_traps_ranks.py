"""Traps around ranks: what is replicated and isn't, who makes the process group, who is told to stop."""

from __future__ import annotations

import pytest

from .harness import Stage


@pytest.mark.parametrize("group", ["own", "backend", "none"])
def test_two_ranks(stage: Stage, group: str) -> None:
    """Two ranks go on bit for bit, batch norm statistics and dropout that differ from rank to rank included:
    with the script's own process group, with one that autoresume makes, and with no DDP at all; whether both ranks
    get the signal or one."""
    whole, _ = stage.compare("ddp.py", group, "plain", nasty=["TERM@2", "TERM@5@1", "TERM@8@0"], ranks=2)
    one, two = whole.final.values()
    assert one["mean"] != two["mean"], "the trap is not set: the statistics are equal"
    assert (one["model"] == two["model"]) is False
    assert one["torch"] != two["torch"]


def test_killed_ranks(stage: Stage) -> None:
    """All ranks killed at once, with a save perhaps half done: the run goes on from a checkpoint that both have."""
    stage.compare("ddp.py", "own", "plain", nasty=["KILL@3", "KILL@5", "KILL@10"], ranks=2, save_every="2")


def test_objects_of_one_rank(stage: Stage) -> None:
    """An EMA that exists on rank 0 alone is kept for rank 0."""
    whole, _ = stage.compare("ddp.py", "own", "ema", nasty=["TERM@3", "KILL@8"], ranks=2, save_every="2")
    one, two = whole.final.values()
    assert one["ema"] != two["ema"]


def test_values_of_one_rank(stage: Stage) -> None:
    """A list that grows in run.state of rank 1 alone comes back there, and nowhere else."""
    stage.compare("ddp.py", "backend", "late", nasty=["TERM@3", "TERM@7@1"], ranks=2, save_every="2")


def test_evaluation_on_one_rank(stage: Stage) -> None:
    """An evaluation on rank 0 alone, between two epochs, which draws random numbers there: each rank has its own."""
    nasty = ["TERM@3", "TERM@4", "KILL@8", "TERM@8"]
    stage.compare("ddp.py", "own", "evaluate", nasty=nasty, ranks=2, save_every="2")


def test_three_ranks_sum_in_the_same_order(stage: Stage) -> None:
    """With three ranks, the order in which DDP sums gradients shows in their bits, and DDP changes it after the
    first step of a process: a resumed process sums as the undisturbed one does."""
    stage.compare("rings.py", nasty=["TERM@2", "TERM@5"], ranks=3)
