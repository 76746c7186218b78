"""Makes runs with checkpoints, without torch and without training."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.format.digest import canonical
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk, chunks_json
from autoresume.format.tensorfile import Entry, lay_out
from autoresume.storage.local import LocalStorage
from tests.node.harness import make_run

RUN_ID = "fa4e4a4c0001"


class FakeRun:
    """A run of two ranks: one shared tensor split over both, one that is each rank's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage: LocalStorage = make_run(folder, RUN_ID)

    def checkpoint(self, step: int, *, life: int = 1, ranks: int = 2, parts: int | None = None) -> CheckpointName:
        """Commit a checkpoint; with fewer `parts` than `ranks` it stays uncommitted."""
        name = CheckpointName(step=step, incarnation=life, epoch=step // 100, samples=step * 32)
        for rank in range(ranks if parts is None else parts):
            persist(self.storage, _snapshot(name, rank, ranks), lambda: None)
        commit_if_complete(self.storage, name, lambda: None)
        return name

    def life(self, number: int, began: int | None, ended: dict[str, Any] | None, **more: Any) -> Incarnation:
        """Write the record of an incarnation."""
        given = {
            "run_id": RUN_ID,
            "host": socket.gethostname(),
            "boot": incarnation.boot_id(),
            "processes": [(2**22 + 1, 0.0)],
            "world_size": 2,
            "command": ["train.py"],
            "began": {"time": 1e9, "step": began, "checkpoint": None, "first_step_seconds": 1.5},
            "ended": ended,
        }
        record = Incarnation(number, **{**given, **more})
        assert self.storage.create(f"incarnations/{number:04d}.json", record.to_bytes())
        return record

    def damage(self, file: str, at: int = -1) -> None:
        """Flip one byte."""
        path = self.folder / file
        data = bytearray(path.read_bytes())
        data[at] ^= 0xFF
        path.write_bytes(data)


def _snapshot(name: CheckpointName, rank: int, ranks: int) -> Snapshot:
    layout = lay_out([Entry("model/weight[half]", "float32", (5, 10)), Entry("own", "int64", (3,))], {})
    image = bytearray(layout.size)
    image[: len(layout.header)] = layout.header
    begins = dict(zip((entry.name for entry in layout.entries), layout.begins))
    chunks = (
        Chunk("model/weight", "float32", (5 * ranks, 10), (5 * rank, 0), (5, 10), True, begins["model/weight[half]"]),
        Chunk("own", "int64", (3,), (0,), (3,), False, begins["own"]),
    )
    return Snapshot(
        run_id=RUN_ID,
        checkpoint=name,
        rank=rank,
        world_size=ranks,
        time=1e9 + name.step,
        image=memoryview(image),
        chunks=chunks_json(chunks),
        tree=canonical(
            {"run": {"step": name.step}, "model": {"weight": {"$": "tensor", "key": "model/weight"}}, "lr": 0.1}
        ),
        about={"world_size": ranks},
        attachments={"env": (f"pickles/rank-{rank:05d}-env.pkl", b"an environment")} if rank == 0 else {},
    )
