"""torch.save and torch.load: one file, written by rank 0."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.peers.base import Rival, app_state


class TorchSave(Rival):
    mapped = False

    def save(self, number: int) -> None:
        if self.group.rank == 0:
            self.place(number).mkdir(parents=True)
            torch.save(app_state(self.state), self._file(number))
        self.group.barrier()

    def load(self, number: int) -> None:
        found = torch.load(self._file(number), weights_only=True, mmap=self.mapped)
        live = app_state(self.state)
        with torch.no_grad():
            _copy(found, live)

    def _file(self, number: int) -> Path:
        return self.place(number) / "state.pt"


class TorchMapped(TorchSave):
    mapped = True


def _copy(found: object, live: object) -> None:
    if isinstance(live, torch.Tensor):
        live.copy_(found)  # type: ignore[arg-type]
    elif isinstance(live, dict):
        for key, value in live.items():
            _copy(found[key], value)  # type: ignore[index]
