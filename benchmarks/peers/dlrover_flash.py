"""DLRover's flash checkpoint, without its cluster: shared memory, and a saver process of its own.

Its steps begin with 1: it takes step 0 for none."""

from __future__ import annotations

import time
from pathlib import Path

from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer, StorageType

from benchmarks.measure import Group
from benchmarks.peers.base import Rival, app_state
from benchmarks.states import State

_PATIENCE_SECONDS = 120.0
_TRACKER = "dlrover_latest.txt"


class DLRover(Rival):
    def __init__(self, folder, state: State, group: Group) -> None:  # type: ignore[no-untyped-def]
        super().__init__(folder, state, group)
        self._checkpointer = DdpCheckpointer(str(folder))
        self._number = -1

    def save(self, number: int) -> None:
        path = str(self.place(number) / "state.pt")
        self._checkpointer.save_checkpoint(number, app_state(self.state), path, storage_type=StorageType.DISK)
        self._number = number

    def wait(self) -> None:
        tracker, end = self.folder / _TRACKER, time.monotonic() + _PATIENCE_SECONDS
        while not tracker.exists() or tracker.read_text().strip() != str(self._number):
            if time.monotonic() > end:
                raise TimeoutError(f"checkpoint {self._number} was not saved within {_PATIENCE_SECONDS:.0f} s")
            time.sleep(0.001)

    def close(self) -> None:
        self._checkpointer._engine.close()
        if self.group.rank == 0:
            for left in Path("/dev/shm").glob("*ckpt_shm_*"):
                left.unlink()
