"""What a checkpoint of 1,000 or 10,000 ranks costs: parts, commit, discovery, reading, retention, `autoresume ls`.

    python benchmarks/scale.py --ranks 1000,10000 --checkpoints 1000

One process plays all ranks in random order with the library's own functions, on a real file system. The time of a
rank is real; that of all ranks together is their sum, which a cluster spends side by side. What grows is shown by
counts: of calls of the storage (list, size, read), and of the names and bytes that they gave back. Two forms:

split      the tensors are the same on all ranks and each stores a share (DDP): a reader needs every rank's part
sharded    each rank holds a piece of every tensor (FSDP): a reader needs its own part

`--latency 1` makes each call of the storage a millisecond slower, as on a network file system.
JSON lines on stdout, a table on stderr. Of the older checkpoints of `ls` and `settle` only the manifests are written:
they look at nothing else there.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.committed import prune_after_commit
from autoresume.checkpoint.discover import complete_commits, judge, list_checkpoints
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.checkpoint.retain import Keep, prune
from autoresume.format import names
from autoresume.format.digest import canonical
from autoresume.format.manifest import Manifest
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk, chunks_json
from autoresume.format.tensorfile import Entry, lay_out
from autoresume.load.boxes import Box
from autoresume.load.reader import CheckpointReader
from autoresume.storage.local import LocalStorage

RUN_ID = "scale"
SHARE = 1024
"""Elements of float32 that a rank stores: 4 KiB."""


class CountingStorage(LocalStorage):
    """The real one, that counts what it is asked, and may be slow."""

    def __init__(self, root: Path, latency_seconds: float) -> None:
        super().__init__(root)
        self.counts: Counter[str] = Counter()
        self._latency_seconds = latency_seconds
        self._lock = threading.Lock()

    def _count(self, **more: int) -> None:
        with self._lock:
            self.counts.update(more)
        if self._latency_seconds:
            time.sleep(self._latency_seconds)

    def list(self, folder: str) -> list[str]:
        found = super().list(folder)
        self._count(list=1, listed=len(found))
        return found

    def size(self, name: str) -> int | None:
        self._count(size=1)
        return super().size(name)

    def read(self, name: str, into: memoryview | None = None, offset: int = 0) -> bytes:
        data = super().read(name, into, offset)
        self._count(read=1, bytes_read=len(data) if into is None else len(into))
        return data


class Report:
    def __init__(self, storage: CountingStorage, ranks: int, form: str) -> None:
        self._storage, self._ranks, self._form = storage, ranks, form

    def measure(self, what: str, act: Callable[[], Any], times: int = 1) -> Any:
        """`times`: how many things `act` does; the seconds and counts are of all of them."""
        self._storage.counts.clear()
        began = time.perf_counter()
        found = act()
        self.say(what, time.perf_counter() - began, times, dict(self._storage.counts))
        return found

    def say(self, what: str, seconds: float, times: int, counts: dict[str, int]) -> None:
        row = {"ranks": self._ranks, "form": self._form, "what": what, "seconds": round(seconds, 4), "times": times}
        print(json.dumps({**row, **counts}), flush=True)
        each = f"{seconds / times * 1e3:10.3f} ms each" if times > 1 else ""
        shown = ", ".join(f"{count:,} {key}" for key, count in sorted(counts.items()))
        print(f"{self._ranks:>7,} {self._form:<8} {what:<34} {seconds:9.3f} s {each:<19} {shown}", file=sys.stderr)


def boxes(form: str, rank: int, ranks: int, tensors: int) -> list[tuple[int, int, int, int]]:
    """(tensor, its elements, offset, size) of what a rank stores."""
    if form == "sharded":
        count = max(1, SHARE // tensors)
        return [(index, count * ranks, count * rank, count) for index in range(tensors)]
    whole = -(-SHARE * ranks // tensors)
    found = []
    begin, end = SHARE * rank, min(SHARE * (rank + 1), whole * tensors) if rank + 1 < ranks else whole * tensors
    while begin < end:
        index, offset = divmod(begin, whole)
        size = min(whole - offset, end - begin)
        found.append((index, whole, offset, size))
        begin += size
    return found


def snapshot(name: CheckpointName, form: str, rank: int, ranks: int, tensors: int) -> Snapshot:
    own = [
        Chunk(f"model/layer{index}/weight", "float32", (whole,), (offset,), (size,), True, 0)
        for index, whole, offset, size in boxes(form, rank, ranks, tensors)
    ]
    layout = lay_out([Entry(chunk.name, chunk.dtype, chunk.size) for chunk in own], {})
    begins = {entry.name: begin for entry, begin in zip(layout.entries, layout.begins)}
    image = bytearray(layout.size)
    image[: len(layout.header)] = layout.header
    chunks = tuple(replace(chunk, begin=begins[chunk.name]) for chunk in own)
    tree = {
        "model": {
            f"layer{index}": {"weight": {"$": "tensor", "key": f"model/layer{index}/weight"}}
            for index in range(tensors)
        }
    }
    time_of = 1700000000.0 + name.step
    return Snapshot(
        RUN_ID, name, rank, ranks, time_of, memoryview(image), chunks_json(chunks), canonical(tree), {"step": name.step}
    )


def free() -> None:
    """A guard that lets everything pass."""


def save(storage: CountingStorage, report: Report, name: CheckpointName, form: str, ranks: int, tensors: int) -> None:
    """Every rank writes its part and looks whether all are there, in random order; the last one commits."""
    order = random.Random(0).sample(range(ranks), ranks)
    seconds, counts = Counter[str](), {key: Counter[str]() for key in ("part", "check", "commit")}
    for index, rank in enumerate(order):
        made = snapshot(name, form, rank, ranks, tensors)
        storage.counts.clear()
        began = time.perf_counter()
        persist(storage, made, free)
        written = time.perf_counter()
        counts["part"].update(storage.counts)
        storage.counts.clear()
        manifest = commit_if_complete(storage, name, free, ranks)
        key = "commit" if index + 1 == ranks else "check"
        assert (manifest is not None) == (key == "commit")
        seconds["part"] += written - began
        seconds[key] += time.perf_counter() - written
        counts[key].update(storage.counts)
    report.say("write a part", seconds["part"], ranks, counts["part"])
    report.say("look whether all parts are there", seconds["check"], ranks - 1, counts["check"])
    report.say("commit (the last rank)", seconds["commit"], 1, counts["commit"])


def read(storage: CountingStorage, manifest: Manifest, form: str, rank: int, tensors: int) -> None:
    """What a rank needs when it resumes in the same world."""
    reader = CheckpointReader(storage, manifest, rank)
    wanted: list[tuple[str, Box | None]] = [(f"model/layer{index}/weight", None) for index in range(tensors)]
    if form == "sharded":
        own = boxes(form, rank, manifest.world_size, tensors)
        wanted = [(f"model/layer{index}/weight", ((offset,), (size,))) for index, _, offset, size in own]
    reader.read_boxes(wanted)


def more_manifests(storage: CountingStorage, manifest: Manifest, count: int) -> None:
    """Older committed checkpoints."""
    for step in range(1, count):
        name = replace(manifest.checkpoint, step=step, samples=step)
        path = storage.path(name.manifest)
        path.parent.mkdir(parents=True)
        path.write_bytes(replace(manifest, checkpoint=name, time=1700000000.0 + step).to_bytes())


def one(folder: Path, form: str, ranks: int, tensors: int, checkpoints: int, latency_seconds: float) -> None:
    storage = CountingStorage(folder, latency_seconds)
    report = Report(storage, ranks, form)
    storage.write(names.RUN, json.dumps({"run_id": RUN_ID, "format_version": names.FORMAT_VERSION}).encode())
    name = CheckpointName(step=1_000_000, incarnation=1, epoch=0, samples=1)
    save(storage, report, name, form, ranks, tensors)
    report.measure("discovery: commit what is complete", lambda: complete_commits(storage, free))
    judged = report.measure("discovery: judge (rank 0)", lambda: judge(storage, list_checkpoints(storage)[0], RUN_ID))
    assert judged.problem is None, judged.problem
    manifest = judged.manifest
    for rank in (0, ranks // 2):
        report.measure(f"read, as rank {rank}", lambda rank=rank: read(storage, manifest, form, rank, tensors))
    if checkpoints > 1:
        more_manifests(storage, manifest, checkpoints)
        report.measure(
            f"settle, {checkpoints} are kept for ever",
            lambda: prune_after_commit(storage, name, Keep(3, 1), free, True),
        )
        for _ in range(3):
            command = [sys.executable, "-m", "autoresume", "ls", str(folder)]
            listed = report.measure(
                f"autoresume ls, {checkpoints} checkpoints",
                lambda command=command: subprocess.run(command, capture_output=True, text=True, check=True).stdout,
            )
            assert listed.count("E0_") == checkpoints
    report.measure("prune one checkpoint", lambda: storage.remove(name.folder))
    assert prune(storage, [], Keep(), free) == []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1000,10000")
    parser.add_argument("--forms", default="split,sharded")
    parser.add_argument("--tensors", type=int, default=592, help="of the model")
    parser.add_argument("--checkpoints", type=int, default=0, help="how many `ls` and `settle` find")
    parser.add_argument("--latency", type=float, default=0.0, metavar="MS", help="added to each call of the storage")
    parser.add_argument("--folder", type=Path, help="where the files are written (default: the system's)")
    given = parser.parse_args()
    for ranks in map(int, given.ranks.split(",")):
        for form in given.forms.split(","):
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                one(Path(folder), form, ranks, given.tensors, given.checkpoints, given.latency / 1e3)


if __name__ == "__main__":
    main()
