"""Where the training waits for the demo's interruptions.

Law: nothing is raced. The rank that comes to the step of the cue says so, and waits until the interruption has been
sent: `cue.json` ({number, step, rank}) is the driver's, `reached-N.json` ({pid, step}) the rank's, and `done-N` the
driver's again. Without DEMO_CUES in the environment there is none of it. No library but Python's own is needed.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

VARIABLE = "DEMO_CUES"
_POLL_SECONDS = 0.005


def wait(step: int, rank: int) -> None:
    """In the training, when `step` steps are complete: wait if this is the place of an interruption."""
    folder = os.environ.get(VARIABLE)
    cue = read(Path(folder, "cue.json")) if folder else None
    if folder is None or cue is None or rank != cue["rank"] or step < cue["step"]:
        return
    done = Path(folder, f"done-{cue['number']}")
    if done.exists():
        return  # one of an earlier life
    write(Path(folder, f"reached-{cue['number']}.json"), {"pid": os.getpid(), "step": step})
    while not done.exists():
        time.sleep(_POLL_SECONDS)


def read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    assert isinstance(found, dict)
    return found


def write(file: Path, content: dict[str, Any]) -> None:
    """Whoever reads it reads all of it."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.rename(file)
