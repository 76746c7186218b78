"""A drill names what is wrong with a script that does not resume, and finds nothing wrong with one that does."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoresume.drill.drill import DIVERGED, NOT_DETERMINISTIC
from tests.drill.quick import KILL, quick

PLANTED = {
    "scheduler": ("scheduler not tracked", "`scheduler` in main()"),
    "numpy-augmentation": ("generator not tracked", "`data.rng` in main()"),
    "generator": ("generator not tracked", "`noise` in main()"),
    "time-shuffle": ("wall clock", "time of day"),
    "counted-twice": ("counted twice", "run.state.epochs"),
    "ema": ("model not tracked", "`ema` in main()"),
    "optimizer-rebuilt": ("optimizer rebuilt", "AdamW"),
    "workers": ("worker randomness", "data workers"),
    "seeded-again": ("seeded again", "between the restore and the first step"),
    "closure": ("state in variables", "`best` in main()"),
    "loader-anew": ("position in the data", "the loader begins anew"),
    "optimizer": ("optimizer not tracked", "AdamW"),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_named(tmp_path: Path, mistake: str) -> None:
    """Its cause is named, with the place in the script, and the first step of the resumed life is where it shows."""
    found = quick(tmp_path, "trainer.py", mistake, interruptions=KILL)
    name, words = PLANTED[mistake]
    assert found.verdict == (NOT_DETERMINISTIC if name == "wall clock" else DIVERGED)
    assert found.cause is not None
    assert found.cause.name == name, (found.cause, found.divergence)
    assert words in found.cause.why
    assert found.divergence is not None
    if found.verdict == DIVERGED:
        life = found.lives[1]
        assert (found.divergence.life, found.divergence.step) == (2, life.resumed_step + 1)
        assert 6 < life.resumed_step < 12, "in the middle of an epoch"
