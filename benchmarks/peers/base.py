"""What a rival is asked to do. One small file each, in the configuration that serves it best here."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Group
from benchmarks.states import State


class Rival:
    """Saves `state` as checkpoint `number` in `folder`, and loads it again. All ranks call everything."""

    durable = False
    """Whether bytes and names are durable when `wait` returns; else everything is synced afterwards, and timed so."""

    def __init__(self, folder: Path, state: State, group: Group) -> None:
        self.folder, self.state, self.group = folder, state, group

    def place(self, number: int) -> Path:
        """What holds checkpoint `number`, wholly."""
        return self.folder / f"{number:04d}"

    def ready(self) -> None:
        """What a training does in the background between its first step and its first save, minutes later."""

    def save(self, number: int) -> None:
        """Returns when the training may go on."""
        raise NotImplementedError

    def join(self) -> None:
        """Called before the optimizer changes anything after a save."""

    def wait(self) -> None:
        """Returns when the last checkpoint is complete, by the rival's own word."""

    def prepare(self, number: int) -> None:
        """Have checkpoint `number` lie on the disk, for another process to load."""
        self.save(number)
        self.wait()

    def load(self, number: int) -> None:
        """Into the live tensors of the state."""
        raise NotImplementedError

    def unload(self) -> None:
        """End what a load has begun, so that another may come."""

    def close(self) -> None:
        """Stop threads and processes."""


def app_state(state: State) -> dict[str, object]:
    """As these libraries want it: the two state dicts."""
    return {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}
