"""Schedules: pure, repeatable, and readable again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresume.drill import schedule
from autoresume.drill.cluster import for_slurm
from autoresume.drill.schedule import ACTIONS, MOMENTS, Interruption
from autoresume.errors import UsageError

SIZES = {"kills": st.integers(1, 40), "steps": st.integers(2, 500), "ranks": st.integers(1, 8)}


@given(seed=st.integers(0, 2**32), evaluates=st.booleans(), **SIZES)
def test_a_seed_is_a_schedule(seed: int, kills: int, steps: int, ranks: int, evaluates: bool) -> None:
    """The same seed gives the same interruptions, as many as asked for, inside of the training, later ones later; and a
    file of them is read back as it was written."""
    made = schedule.make(seed, kills, steps, ranks, evaluates)
    assert made == schedule.make(seed, kills, steps, ranks, evaluates)
    assert len(made) == kills
    assert all(0 < one.step < steps and 0 <= one.rank < ranks for one in made)
    assert [one.step for one in made] == sorted(one.step for one in made)
    assert made[0].at not in ("start", "restore")
    assert evaluates or "evaluation" not in {one.at for one in made}
    assert schedule.from_json(schedule.to_json(made)) == made


def test_many_interruptions_are_of_all_kinds() -> None:
    """Twenty of them have each moment and each action."""
    made = schedule.make(0, 20, 100, 2, evaluates=True)
    assert {one.at for one in made} == set(MOMENTS)
    assert {one.action for one in made} == set(ACTIONS)
    assert len({one.words() for one in made}) > 15


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[{"action": "burn", "at": "step"}]',
        '[{"action": "kill", "at": "noon"}]',
        '[{"action": "kill", "at": "save"}]',
        '[{"action": "kill", "at": "step", "point": "restore.read"}]',
        '[{"action": "kill", "at": "save", "point": "storage.nowhere"}]',
        '[{"action": "kill", "at": "step", "when": 3}]',
    ],
)
def test_a_bad_file_is_refused_with_an_example(text: str) -> None:
    """What is wrong, and what one interruption looks like."""
    with pytest.raises(UsageError, match='"action": "term"'):
        schedule.from_json(text, "schedule.json")


def test_a_training_of_one_step_can_not_be_interrupted() -> None:
    """There is nothing between its beginning and its end."""
    with pytest.raises(UsageError, match="at least 2"):
        schedule.make(0, 1, 1, 1)


def test_words_say_what_happens_where() -> None:
    """As they stand in the report."""
    assert Interruption("kill-rank", "forward", 4, 1).words() == "kill of rank 1 in step 5"
    assert Interruption("usr1", "start").words() == "SIGUSR1 in start-up"
    assert "commit.before_manifest" in Interruption("kill", "save", 3, point="commit.before_manifest").words()


@pytest.mark.parametrize(
    ("asked", "had"),
    [
        (Interruption("kill", "start"), Interruption("kill", "step")),
        (Interruption("kill-daemon", "forward", 3, 1), Interruption("kill-daemon", "forward", 3, 1)),
        (Interruption("limit", "evaluation", 3), Interruption("limit", "evaluation", 3)),
        (Interruption("kill", "save", point="commit.before_manifest"), Interruption("kill-rank", "save", point="save.sealed")),
        (Interruption("kill", "save", point="save.copied"), Interruption("kill-rank", "save", point="save.copied")),
        (Interruption("kill", "restore", point="restore.done"), Interruption("kill-rank", "restore", point="restore.done")),
    ],
)  # fmt: skip
def test_what_of_a_schedule_a_cluster_has(asked: Interruption, had: Interruption) -> None:
    """Ranks that run elsewhere are killed where they come to themselves; the rest of a schedule stays as it is."""
    assert for_slurm(asked) == had
