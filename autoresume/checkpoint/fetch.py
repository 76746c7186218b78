"""The blocks of a checkpoint's files: read once each, in parallel, to where their bytes are wanted, and verified.

Law: nobody may use a byte before `fetch` returns: a target is filled while its block is being verified. The ranks of
a node that want the same begin at different blocks, so that each is fetched from the disk by whoever comes to
it first, and is found in the page cache by the others.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from autoresume.errors import CheckpointInvalid
from autoresume.format.digest import seal_of
from autoresume.format.names import CheckpointName
from autoresume.format.part import File
from autoresume.storage.base import Reader, Storage
from autoresume.storage.reading import Target, open_file

log = logging.getLogger("autoresume")

_MOST_THREADS = 8

Image = tuple[Path, int]
"""A file in memory, and the byte that what is meant begins at."""


@dataclass
class Wanted:
    """What is wanted of one file: `targets` that begin in it, in any order."""

    file: File
    targets: list[Target] = field(default_factory=list)
    common: set[int] = field(default_factory=set)
    """The blocks that other ranks of this node want as well."""

    def want(self, begin: int, memory: memoryview, common: bool) -> None:
        """The bytes from `begin` on are wanted in `memory`."""
        if len(memory):
            self.targets.append((begin, memory))
            if common:
                size = self.file.block_bytes
                self.common.update(range(begin // size, (begin + len(memory) - 1) // size + 1))


@dataclass(frozen=True)
class _Block:
    file: File
    index: int
    targets: Sequence[Target]
    common: bool

    @property
    def range(self) -> tuple[int, int]:
        begin = self.index * self.file.block_bytes
        return begin, min(begin + self.file.block_bytes, self.file.bytes)


def fetch(
    storage: Storage, name: CheckpointName, wanted: Sequence[Wanted], images: Mapping[str, Image] | None = None
) -> None:
    """Fill all targets. `images` are copies of some of the files in this node's memory, by the files' names: what is
    right in them is taken from there.

    Raises CheckpointInvalid for the first block that is not as its digest says, and OSError.
    """
    _run(storage, name, [block for one in wanted for block in _blocks_with_targets(one)], images or {})


def verify_file(storage: Storage, name: CheckpointName, file: File) -> None:
    """Read all of a file and keep nothing. Raises CheckpointInvalid, OSError."""
    _run(storage, name, [_Block(file, index, (), False) for index in range(len(file.digests))], {})


def _run(storage: Storage, name: CheckpointName, blocks: Sequence[_Block], images: Mapping[str, Image]) -> None:
    rank, count = node_ranks()
    if any(block.common for block in blocks):
        turn = len(blocks) * rank // count
        blocks = [*blocks[turn:], *blocks[:turn]]
    files = {
        file.name: _File(file, storage, name, images.get(file.name))
        for file in {block.file.name: block.file for block in blocks}.values()
    }
    for block in blocks:
        files[block.file.name].left += 1
    with ThreadPoolExecutor(_threads(count), "autoresume-read") as pool:
        try:
            for _ in pool.map(lambda block: files[block.file.name].read(block), blocks):
                pass
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for file in files.values():
                file.close()


class _File:
    """Open while blocks of it are being read: a checkpoint may have more files than a process may open."""

    def __init__(self, file: File, storage: Storage, checkpoint: CheckpointName, image: Image | None) -> None:
        self.file, self.storage, self.checkpoint, self.image = file, storage, checkpoint, image
        self.left = 0
        """Blocks that are still to be read."""
        self._open: dict[str, Reader] = {}
        self._lock = threading.Lock()

    def read(self, block: _Block) -> None:
        if not self._read_image(block):
            self._read_file(block)
        with self._lock:
            self.left -= 1
        if not self.left:
            self.close()

    def _read_image(self, block: _Block) -> bool:
        """False where the image is not what was written. The file is read instead then, all that is left of it."""
        image = self.image
        if image is None:
            return False
        try:
            if _is_right(block, self._opened("image", lambda: open_file(image[0], image[1]))):
                return True
            problem = "its digest differs"
        except (OSError, EOFError) as error:
            problem = str(error)
        log.debug("%s is read from disk, since its image in memory can't be used: %s", self.file.name, problem)
        self.image = None
        return False

    def _read_file(self, block: _Block) -> None:
        begin, end = block.range
        name = self.checkpoint.inside(self.file.name)
        try:
            right = _is_right(block, self._opened("file", lambda: self.storage.reader(name)))
        except (EOFError, FileNotFoundError) as error:
            raise CheckpointInvalid(f"{self.file.name} can't be read whole: {error}") from error
        if not right:
            raise CheckpointInvalid(
                f"{self.file.name} of {self.checkpoint} is damaged between byte {begin} and {end}: its digest differs"
            )

    def _opened(self, what: str, make: Callable[[], Reader]) -> Reader:
        with self._lock:
            if what not in self._open:
                self._open[what] = make()
            return self._open[what]

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


def _is_right(block: _Block, reader: Reader) -> bool:
    return seal_of(reader.fill(*block.range, block.targets, block.common)) == block.file.digests[block.index]


def node_ranks() -> tuple[int, int]:
    """(place, number) of the ranks on this node, as the launcher says."""
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return (int(os.environ.get("LOCAL_RANK", "0")), count) if count > 1 else (0, 1)


def _threads(ranks: int) -> int:
    """Several a core, since most of them wait for the disk."""
    return max(2, min(_MOST_THREADS, 4 * len(os.sched_getaffinity(0)) // ranks))


def _blocks_with_targets(wanted: Wanted) -> Iterator[_Block]:
    size = wanted.file.block_bytes
    for layer in _layers(wanted.targets):
        begins = [begin for begin, _ in layer]
        ends = [begin + len(memory) for begin, memory in layer]
        index = 0
        while index * size < ends[-1]:
            first, last = bisect_right(ends, index * size), bisect_left(begins, (index + 1) * size)
            if first < last:
                yield _Block(wanted.file, index, layer[first:last], index in wanted.common)
                index += 1
            else:
                index = begins[first] // size


def _layers(targets: Sequence[Target]) -> list[list[Target]]:
    """Sorted, none overlapping another. A byte that is wanted twice, which is rare, is read twice."""
    layers: list[list[Target]] = []
    for target in sorted(targets, key=lambda one: one[0]):
        for layer in layers:
            if layer[-1][0] + len(layer[-1][1]) <= target[0]:
                layer.append(target)
                break
        else:
            layers.append([target])
    return layers
