"""torchsnapshot's async_take; replicated state is split over the ranks."""

from __future__ import annotations

from torchsnapshot import Snapshot

from benchmarks.peers.base import Rival


class Torchsnapshot(Rival):
    def save(self, number: int) -> None:
        self._pending = Snapshot.async_take(str(self.place(number)), self._app(), replicated=["**"])

    def wait(self) -> None:
        self._pending.wait()

    def load(self, number: int) -> None:
        Snapshot(str(self.place(number))).restore(self._app())

    def _app(self) -> dict[str, object]:
        return {"model": self.state.model, "optimizer": self.state.optimizer}
