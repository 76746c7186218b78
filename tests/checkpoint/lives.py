"""A run without torch: incarnations that claim, save as two ranks, commit, prune and collect, as the real one does.

What is written is a function of the checkpoint's name and the rank, so that whatever is found after a
crash can be compared with what was written. As a script it lives one life and tells each commit:
`python lives.py RUN_FOLDER ORDER IMAGE_BYTES`.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.committed import prune_after_commit
from autoresume.checkpoint.discover import complete_commits, judge, list_checkpoints
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.checkpoint.retain import Keep
from autoresume.checkpoint.sidefiles import copy_into
from autoresume.checkpoint.verify import verify
from autoresume.format import names
from autoresume.format.digest import canonical
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk, chunks_json
from autoresume.format.tensorfile import Entry, aligned, lay_out
from autoresume.loggers.journal import Journal
from autoresume.storage import LocalStorage

RUN_ID = "run-of-two-ranks"
WORLD_SIZE = 2
KEEP = Keep(last=2)
BEST = f"{names.FILES}/best.pt"
ORDERS = ["in turn", "at once"]
"""Rank 1 persists after rank 0 looked for all parts; or both persist, and then both see all parts."""
FROZEN = 7
"""Bytes that are the same in each checkpoint."""

Told = Callable[[CheckpointName], None]


def name_of(step: int, incarnation_number: int) -> CheckpointName:
    return CheckpointName(step=step, incarnation=incarnation_number, epoch=step // 100, samples=8 * step)


def snapshot(
    name: CheckpointName,
    rank: int,
    image_bytes: int = 4,
    run_id: str = RUN_ID,
    files: tuple[str, ...] = (),
    frozen: int | None = None,
) -> Snapshot:
    """Half of a shared tensor "model/w", a tensor of this rank's own, an attachment, and the run's side files.

    With `frozen`, a second tensor file too, whose tensor is of so many bytes, the same at each step.
    """
    shape = (WORLD_SIZE * image_bytes,)
    layout = lay_out([Entry("model/w[half]", "uint8", (image_bytes,)), Entry("rng", "uint8", (5,))], {})
    second = lay_out([Entry("frozen", "uint8", (frozen or 0,))], {})
    base, size = aligned(layout.size), layout.size if frozen is None else aligned(layout.size) + second.size
    image = memoryview(mmap.mmap(-1, size))  # as a rank's arena is: aligned, so that it is written as it lies
    image[: len(layout.header)] = layout.header
    fill = bytes((name.step * 7 + name.incarnation * 3 + rank + place) % 256 for place in range(256))
    for begin, entry in zip(layout.begins, layout.entries):
        image[begin : begin + entry.bytes] = (fill * (entry.bytes // 256 + 1))[: entry.bytes]
    half = Chunk("model/w", "uint8", shape, (rank * image_bytes,), (image_bytes,), True, layout.begins[0])
    own = Chunk("rng", "uint8", (5,), (0,), (5,), False, layout.begins[1])
    chunks = [half, own]
    if frozen is not None:
        image[base : base + len(second.header)] = second.header
        image[base + second.begins[0] :] = bytes([rank + 1]) * frozen
        chunks.append(Chunk("frozen", "uint8", (frozen,), (0,), (frozen,), False, base + second.begins[0]))
    return Snapshot(
        run_id=run_id,
        checkpoint=name,
        rank=rank,
        world_size=WORLD_SIZE,
        time=1700000000.0 + name.step,
        image=image,
        chunks=chunks_json(chunks),
        tree=canonical(
            {
                "model": {"w": {"$": "tensor", "key": "model/w"}},
                "rng": {"$": "tensor", "key": "rng"},
                "step": name.step,
            }
        ),
        about={"step": name.step},
        attachments={"env": (names.pickle_file(rank, "env"), fill[:9])},
        sync={names.JOURNAL: 0},
        files=files,
        first_bytes=None if frozen is None else layout.size,
    )


def best(step: int) -> bytes:
    """What the script's side file holds at a step."""
    return b"best of step %d" % step


def begin(storage: LocalStorage) -> int:
    """Claim the run, as a process that will be dead by the time that somebody looks."""

    def record(number: int) -> Incarnation:
        dead = [(2**22 + 1, 0.0)]  # above the largest process number of Linux
        return Incarnation(number, RUN_ID, socket.gethostname(), incarnation.boot_id(), dead, WORLD_SIZE, ["train.py"])

    return incarnation.claim(storage, record, own=[]).number


def newest_valid(storage: LocalStorage) -> CheckpointName | None:
    return next((name for name in list_checkpoints(storage) if judge(storage, name, RUN_ID).problem is None), None)


def live(
    storage: LocalStorage, saves: int, told: Told, order: str = "in turn", image_bytes: int = 4, every: int = 10
) -> None:
    """One incarnation: go on from the newest valid checkpoint, and save `saves` times. `told` hears of each commit."""
    number = begin(storage)
    guard = incarnation.guard(storage, number)
    for name in complete_commits(storage, guard):
        told(name)
    newest = newest_valid(storage)
    step = newest.step if newest else 0
    journal = Journal(storage.root / names.JOURNAL)
    journal.truncate(step)
    storage.sync(names.JOURNAL)  # it was synced; this tells the storage that forgets
    collected = False
    try:
        for _ in range(saves):
            for step in range(step + 1, step + every + 1):
                journal.append(step, {"loss": step / 2})
            journal.flush()
            name = name_of(step, number)
            storage.write(BEST, best(step))
            files = copy_into(storage, name)
            snapshots = [
                snapshot(name, rank, image_bytes, files=files if rank == 0 else (), frozen=FROZEN)
                for rank in range(WORLD_SIZE)
            ]
            if order == "at once":
                for one in snapshots:
                    persist(storage, one, guard)
            for one in snapshots:
                if order == "in turn":
                    persist(storage, one, guard)
                if commit_if_complete(storage, name, guard, WORLD_SIZE) is not None:
                    told(name)
                    prune_after_commit(storage, name, KEEP, guard, collected)
                    collected = True
    finally:
        journal.close()


def check(storage: LocalStorage, acknowledged: list[CheckpointName], image_bytes: int = 4) -> None:
    """What must hold after any crash; `acknowledged` are the commits that returned before it."""
    valid = []
    for name in list_checkpoints(storage):
        if judge(storage, name, RUN_ID).problem is None:
            assert verify(storage, name, RUN_ID) is None, f"{name} is judged valid, and is torn"
            for rank in range(WORLD_SIZE):
                saved = snapshot(name, rank, image_bytes, frozen=FROZEN)
                assert storage.read(name.shard(rank)) == saved.shard, f"{name} differs"
                unchanged = storage.read(name.inside(names.unchanged_file(rank)))
                assert unchanged == saved.unchanged, f"what is unchanged in {name} differs"
            assert storage.read(name.inside(BEST)) == best(name.step), f"the side file of {name} differs"
            valid.append(name)
    if acknowledged:
        newest = max(acknowledged)
        assert newest in valid, f"the newest committed checkpoint {newest} is lost; valid are {valid}"
    if valid:
        lines = (storage.root / names.JOURNAL).read_bytes().split(b"\n")[: valid[0].step]
        assert [line[:8] for line in lines[:9]] == [b'{"step":'] * 9
        assert len(lines) == valid[0].step, f"the journal ends before {valid[0]}"


def check_going_on(storage: LocalStorage, acknowledged: list[CheckpointName], image_bytes: int = 4) -> None:
    """A new incarnation begins at the newest checkpoint, saves, and leaves nothing of the dead one but that."""
    told: list[CheckpointName] = []
    before = newest_valid(storage)
    live(storage, 1, told.append, image_bytes=image_bytes)
    new = told.pop()
    newest = max([*told, *([before] if before else [])], default=None)
    assert new == name_of(10 + (newest.step if newest else 0), incarnation.numbers(storage)[-1])
    left = storage.list(names.CHECKPOINTS)
    assert left == sorted(str(name) for name in (newest, new) if name is not None)
    check(storage, [*acknowledged, *told, new], image_bytes)


def main() -> None:
    folder, order, image_bytes = sys.argv[1:]
    live(
        LocalStorage(Path(folder)),
        3,
        lambda name: os.write(1, f"{name}\n".encode()) and None,
        order,
        int(image_bytes),
    )


if __name__ == "__main__":
    main()
