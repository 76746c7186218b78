"""autoresume's own parts, as a run uses them: the one file here that knows them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import autoresume
from autoresume.checkpoint.retain import Keep
from autoresume.format.names import CheckpointName
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot.saver import Saver
from autoresume.snapshot.sinks import Sink, ThreadSink
from autoresume.storage.local import LocalStorage
from benchmarks.measure import Group
from benchmarks.peers.base import Rival
from benchmarks.states import State


class Ours(Rival):
    """Saves are not overlapped here, and persisted by a thread; with loop and node daemon see `loop`."""

    durable = True

    def __init__(self, folder: Path, state: State, group: Group) -> None:
        super().__init__(folder, state, group)
        self._storage = LocalStorage(folder)
        self._saver: Saver | None = None
        self._last: CheckpointName | None = None

    def place(self, number: int) -> Path:
        return self.folder / CheckpointName(step=number, incarnation=1, epoch=0, samples=0).folder

    def ready(self) -> None:
        self._saver = Saver("benchmark", Ranks.join(), self._sink(), None, self._sink)
        # Model and optimizer are equal on all ranks here, as under DDP: the promise has them split.
        self._saver.prepare(self._objects(), frozenset(self._objects()))
        coming = self._saver._arenas._coming
        assert coming is not None
        coming.result()

    def save(self, number: int) -> None:
        assert self._saver is not None
        self._last = CheckpointName(step=number, incarnation=1, epoch=0, samples=0)
        self._saver.save(self._last, self._objects(), frozenset(self._objects()), {}, urgent=False)

    def _objects(self) -> dict[str, Any]:
        return {"model": self.state.model, "optimizer": self.state.optimizer}

    def _sink(self) -> Sink:
        return ThreadSink(self._storage, Keep(1000), lambda: None)

    def wait(self) -> None:
        assert self._saver is not None
        assert self._last is not None
        self._saver.finish_handover()
        while self._storage.size(self._last.manifest) is None:
            for outcome in self._saver.sink.outcomes():
                if outcome.problem is not None:
                    raise RuntimeError(outcome.problem)
            time.sleep(0.001)

    def prepare(self, number: int) -> None:
        run = self._start()
        run.step()
        run.close("ended", "the benchmark has what it needs")

    def load(self, number: int) -> None:
        """As a script does it: the whole of `run.restore`, claims and verification included."""
        self._run = self._start()

    def unload(self) -> None:
        self._run.close("ended", "the benchmark has what it needs")

    def _start(self) -> autoresume.Run:
        run = autoresume.start(run_dir=str(self.folder), save_every=1)
        objects = {"model": self.state.model, "optimizer": self.state.optimizer}
        run.track(**{name: autoresume.replicated(value) for name, value in objects.items()})
        run.restore()
        return run

    def close(self) -> None:
        if self._saver is not None:
            self._saver.close()
