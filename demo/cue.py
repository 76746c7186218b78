"""Where the training waits for the demo's interruptions.

Law: nothing is raced. A rank that comes to a place of the plan says so, and waits until the driver has done there what
it wanted to. `plan.json` ({name: [step, rank]}) is the driver's, written before the training comes there;
`reached-NAME.json` ({pid, step}) is the rank's; `done-NAME` is the driver's again. Without DEMO_CUES in the environment
there is none of it. No library but Python's own is needed.
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
    """In the training, when `step` steps are complete: wait at the places of the plan."""
    folder = os.environ.get(VARIABLE)
    plan = read(Path(folder, "plan.json")) if folder else None
    if folder is None or plan is None:
        return
    for name, (at, of_rank) in plan.items():
        done = Path(folder, f"done-{name}")
        if rank != of_rank or step < at or done.exists():
            continue
        write(Path(folder, f"reached-{name}.json"), {"pid": os.getpid(), "step": step})
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
