"""Lightning Fabric's save, which is torch.save behind a strategy."""

from __future__ import annotations

from lightning_fabric import Fabric as LightningFabric

from benchmarks.measure import Group
from benchmarks.peers.base import Rival
from benchmarks.states import State


class Fabric(Rival):
    def __init__(self, folder, state: State, group: Group) -> None:  # type: ignore[no-untyped-def]
        super().__init__(folder, state, group)
        self._fabric = LightningFabric(accelerator="cpu", devices=1)
        self._model, self._optimizer = self._fabric.setup(state.model, state.optimizer)

    def save(self, number: int) -> None:
        self._fabric.save(self.place(number) / "state.ckpt", {"model": self._model, "optimizer": self._optimizer})

    def load(self, number: int) -> None:
        self._fabric.load(self.place(number) / "state.ckpt", {"model": self._model, "optimizer": self._optimizer})
