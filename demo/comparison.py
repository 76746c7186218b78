"""Is the interrupted run the same as the one that was left in peace?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from autoresume.format.names import CheckpointName


def answers(calm: Path, rough: Path, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, bool]:
    """What was asked, and whether it is so. `one` and `other`: the two runs' records."""
    steps = [record["step"] for record in other]
    return {
        f"{len(one)} steps, each logged exactly once": steps == list(range(1, len(one) + 1)),
        "every loss and learning rate bit-identical": [r["values"] for r in one] == [r["values"] for r in other],
        "TensorBoard shows the same curve, each step once": tensorboard(calm) == tensorboard(rough),
        "final weights, optimizer, generators: files byte-identical": last_files(calm) == last_files(rough),
    }


def tensorboard(folder: Path) -> list[tuple[int, float]]:
    """The curve that TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of each life, whose file begins by purging
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def last_files(folder: Path) -> dict[str, bytes]:
    """The tensor files of the last checkpoint: weights, optimizer and generators of each rank."""
    named = [
        (CheckpointName.parse(path.parent.name), path.parent) for path in folder.glob("checkpoints/*/manifest.json")
    ]
    _, newest = max((name, path) for name, path in named if name is not None)
    return {path.name: path.read_bytes() for path in sorted((newest / "shards").iterdir())}
