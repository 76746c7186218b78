"""A drill finds nothing wrong with scripts that resume rightly, whatever the moments and the kinds of interruptions."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoresume.drill.drill import IDENTICAL
from autoresume.drill.schedule import Interruption
from tests.drill.quick import quick
from tests.real_scripts import harness

OTHERS = harness.SCRIPTS
CORRECT = [
    ("trainer.py", "none"),
    ("trainer.py", "none-workers"),
    (str(OTHERS / "zoo.py"),),
    (str(OTHERS / "epochs.py"), "run", "0"),
    (str(OTHERS / "epochs.py"), "shuffled", "0"),
    (str(OTHERS / "epochs.py"), "torchdata", "0"),
    (str(OTHERS / "globals.py"), "max_iters = 7"),
    (str(OTHERS / "accumulate.py"),),
    (str(OTHERS / "ranges.py"),),
    (str(OTHERS / "ahead.py"), "map", "0", "batches", "1"),
]
MOMENTS = [
    Interruption("term", "forward", 2),
    Interruption("kill", "save", point="commit.before_manifest"),
    Interruption("kill", "restore", point="restore.read"),
]
MORE = [Interruption("kill-rank", "start"), Interruption("kill-rank", "step", 5)]


@pytest.mark.parametrize("command", CORRECT, ids=lambda command: "-".join(Path(word).stem for word in command))
def test_a_script_that_resumes_is_identical(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Interrupted in a step, in a save, and in a restore (one of them in start-up and at a boundary, too): the verdict is
    identical."""
    moments = MOMENTS + MORE if command == CORRECT[0] else MOMENTS
    found = quick(tmp_path, *command, interruptions=moments)
    assert found.verdict == IDENTICAL, (found.divergence, found.final, found.cause)
    assert [life.came for life in found.lives[:3]] == [True] * 3, found.lives
    # What a script counts for itself begins anew, and is told of, though nothing comes of it.
    noticed = ["main: micro"] if "accumulate" in command[0] else []
    assert [one.name for one in found.unnoticed] == noticed
