"""What is told when a script comes to its end.

Law: what the last checkpoint does not hold is said, with what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoresume.audit import verdict

log = logging.getLogger("autoresume")


def warn_of_last_update(step: int, before: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """An update was made behind the last step boundary, and counts as `step`; `state` is what the script keeps, and
    what it was at that boundary."""
    if state and all(before.get(name) is value for name, value in state.items()):
        log.warning(
            "the optimizer made an update behind the last step boundary: it counts as step %d. What the script keeps "
            "in run.state (%s) was not brought up to it, so that a run that is trained on (restore mode 'continue') "
            "may make that update twice: set it, or call run.step(), before the loop is left.",
            step,
            ", ".join(list(state)[:3]),
        )


def log_finished(folder: Path, step: int, epoch: int | None) -> None:
    """`epoch` is where a checkpoint stood behind which nothing was trained."""
    if epoch is not None:
        log.warning(
            "nothing was left to train: the checkpoint stands after step %d, in epoch %d, where the script's "
            "loop ends. Give it more epochs, or steps, or select an earlier checkpoint",
            step,
            epoch,
        )
    log.info("run %s is finished after step %d", folder, step)
    told = verdict.summary(verdict.read(folder))
    if told is not None:
        log.info("%s", told)
