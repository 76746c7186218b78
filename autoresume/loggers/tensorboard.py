"""TensorBoard: event files in `<run>/tensorboard`, one curve over all incarnations.

Law: each incarnation writes an event file of its own that begins by purging what is newer than the
restored step; what the killed one did not write any more is fed again from the journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoresume.loggers.base import Record, RunInfo


class TensorBoardLogger:
    """Scalars by torch's SummaryWriter (an extra: tensorboard)."""

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make: Any = SummaryWriter
        self.handle: Any = None

    def open(self, run: RunInfo, resumed_step: int) -> tuple[int, Mapping[str, str]]:
        folder = run.folder / "tensorboard"
        held = last_step(folder, resumed_step)
        self.handle = self._make(str(folder), purge_step=held + 1, flush_secs=5)
        if not run.identity:
            about = {"run_id": run.run_id, **({"origin": run.origin} if run.origin else {}), **run.config}
            rows = "\n".join(f"| {key} | {value} |" for key, value in about.items())
            self.handle.add_text("run", f"| | |\n|---|---|\n{rows}", 0)
        return held, {"folder": str(folder)}

    def write(self, records: Sequence[Record]) -> None:
        for record in records:
            for name, value in record.values.items():
                if isinstance(value, (int, float)):
                    self.handle.add_scalar(name, value, record.step, walltime=record.time)
                elif value is not None:
                    self.handle.add_text(name, str(value), record.step, walltime=record.time)

    def flush(self) -> None:
        self.handle.flush()

    def close(self, how: str) -> None:
        self.handle.close()


def last_step(folder: Path, at_most: int) -> int:
    """The last step, no later than `at_most`, that the event files of `folder` hold; -1 for none.

    Each file goes on where an earlier one was cut, so the newest file that holds any such step tells.
    A step is only counted when a later one follows it: of the last one some values may be missing.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for file in sorted(folder.glob("events.out.tfevents.*"), reverse=True):
        steps = [int(event.step) for event in EventFileLoader(str(file)).Load() if event.HasField("summary")]
        found = sorted({step for step in steps if step <= at_most})
        if found:
            complete = found if max(steps) > found[-1] else found[:-1]
            return complete[-1] if complete else found[-1] - 1
    return -1
