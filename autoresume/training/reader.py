"""Reading a checkpoint back into tensors, for any rank of any world size.

Law: every byte that is used is verified against its digest first. A rank reads only the blocks that
hold what it needs: its own tensors, and of the shared ones the boxes that overlap its own.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from autoresume.checkpoint.discover import load_part
from autoresume.checkpoint.verify import verify_file
from autoresume.errors import CheckpointInvalid
from autoresume.failpoints import reach
from autoresume.format.digest import digest
from autoresume.format.manifest import Chunk, Manifest, Part
from autoresume.storage.base import Storage

_THREADS = 4
Box = tuple[tuple[int, ...], tuple[int, ...]]
"""(offset, size)"""


class CheckpointReader:
    """One committed checkpoint. `rank` is the reader's; ranks that did not exist then read rank 0's own state."""

    def __init__(self, storage: Storage, manifest: Manifest, rank: int) -> None:
        """Raises CheckpointInvalid if a part is not what the manifest says."""
        self.storage = storage
        self.manifest = manifest
        self.parts = [load_part(storage, manifest, index) for index in range(manifest.world_size)]
        self.rank = rank if rank < manifest.world_size else 0
        self.exact = rank < manifest.world_size
        """Whether the state that is each rank's own (its RNGs) really was this rank's."""
        self.chunks: dict[str, list[tuple[Part, Chunk]]] = {}
        for part in self.parts:
            for chunk in part.chunks:
                if chunk.shared or part.rank == self.rank:
                    self.chunks.setdefault(chunk.key, []).append((part, chunk))

    @property
    def tree(self) -> Any:
        return self.parts[self.rank].tree

    @property
    def about(self) -> dict[str, Any]:
        """What the writer noted about the run (rank 0's)."""
        return self.parts[0].about

    def attachment(self, key: str) -> bytes:
        """A pickled object's bytes, verified. Raises CheckpointInvalid."""
        file = self.parts[self.rank].attachments.get(key)
        if file is None:
            raise CheckpointInvalid(f"the attachment {key!r} of rank {self.rank} is missing")
        data = self.storage.read(self.manifest.checkpoint.inside(file.name))
        view = memoryview(data)
        for index, expected in enumerate(file.digests):
            if digest(view[index * file.block_bytes : (index + 1) * file.block_bytes]) != expected:
                raise CheckpointInvalid(f"{file.name} is damaged: its digest differs")
        return data

    def verify_attachment(self, key: str) -> None:
        """Read a file of rank 0's part against its digests, keeping none of it. Raises CheckpointInvalid."""
        verify_file(self.storage, self.manifest.checkpoint, self.parts[0].attachments[key])

    def read(self, wanted: dict[str, Box | None]) -> dict[str, torch.Tensor]:
        """The tensors of the keys in `wanted`: the given box of each, or all of it. On the CPU, verified.

        Raises CheckpointInvalid when a key is missing, is not wholly covered, or a digest differs.
        """
        plans = {key: self._pieces(key, box) for key, box in wanted.items()}
        files = _Files(self.storage, self.manifest)
        for _, pieces in plans.values():
            for part, chunk in pieces:
                files.want(part, chunk)
        files.fetch()
        reach("restore.read")
        dtypes = {key: getattr(torch, self.describe(key).dtype) for key in plans}
        return {key: _assemble(files, box, pieces, dtypes[key]) for key, (box, pieces) in plans.items()}

    def describe(self, key: str) -> Chunk:
        """Any chunk of the tensor: its dtype and whole shape. Raises CheckpointInvalid."""
        if key not in self.chunks:
            raise CheckpointInvalid(f"the tensor {key!r} is in no part of {self.manifest.checkpoint}")
        return self.chunks[key][0][1]

    def _pieces(self, key: str, box: Box | None) -> tuple[Box, list[tuple[Part, Chunk]]]:
        whole = self.describe(key)
        if box is None:
            box = ((0,) * len(whole.shape), whole.shape)
        pieces, common = [], []
        for part, chunk in self.chunks[key]:
            overlap = _overlap(box, (chunk.offset, chunk.size))
            if overlap is not None:
                pieces.append((part, chunk))
                common.append(overlap)
        covered = _covered(box, common)
        if covered != sum(_count(size) for _, size in common):
            ranks = sorted({part.rank for part, _ in pieces})
            raise CheckpointInvalid(f"tensor {key!r}: the same elements are stored by several of the ranks {ranks}")
        if covered != _count(box[1]):
            raise CheckpointInvalid(
                f"tensor {key!r}: the parts hold {covered} of the {_count(box[1])} elements that are needed"
            )
        return box, pieces


class _Files:
    """The blocks of the shards that are needed, fetched and verified in parallel."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self.storage = storage
        self.name = manifest.checkpoint
        self.memory: dict[int, memoryview] = {}
        self.blocks: set[tuple[int, int]] = set()
        self.parts: dict[int, Part] = {}

    def want(self, part: Part, chunk: Chunk) -> None:
        self.parts[part.rank] = part
        size = part.shard.block_bytes
        if chunk.bytes:
            first, last = chunk.begin // size, (chunk.begin + chunk.bytes - 1) // size
            self.blocks.update((part.rank, block) for block in range(first, last + 1))

    def fetch(self) -> None:
        for rank, part in self.parts.items():
            # Anonymous memory: pages of blocks that nobody wants are never touched and cost nothing.
            self.memory[rank] = memoryview(mmap.mmap(-1, max(1, part.shard.bytes)))
        with ThreadPoolExecutor(_THREADS, "autoresume-read") as pool:
            for _ in pool.map(self._fetch_block, sorted(self.blocks)):
                pass

    def _fetch_block(self, which: tuple[int, int]) -> None:
        rank, block = which
        file = self.parts[rank].shard
        begin = block * file.block_bytes
        window = self.memory[rank][begin : min(begin + file.block_bytes, file.bytes)]
        try:
            self.storage.read(self.name.inside(file.name), into=window, offset=begin)
        except (EOFError, FileNotFoundError) as error:
            raise CheckpointInvalid(f"{file.name} can't be read whole: {error}") from error
        if digest(window) != file.digests[block]:
            raise CheckpointInvalid(
                f"{file.name} is damaged between byte {begin} and {begin + len(window)}: its digest differs"
            )

    def tensor(self, part: Part, chunk: Chunk) -> torch.Tensor:
        dtype = getattr(torch, chunk.dtype)
        if not chunk.bytes:
            return torch.empty(chunk.size, dtype=dtype)
        view = self.memory[part.rank][chunk.begin : chunk.begin + chunk.bytes]
        return torch.frombuffer(view, dtype=torch.uint8).view(dtype).view(chunk.size)


def _assemble(files: _Files, box: Box, pieces: Sequence[tuple[Part, Chunk]], dtype: torch.dtype) -> torch.Tensor:
    offset, size = box
    # Into memory of torch's own: a tensor that begins at an odd address is computed with by other instructions,
    # and rounds otherwise.
    result = torch.empty(size, dtype=dtype)
    for part, chunk in pieces:
        source = files.tensor(part, chunk)
        common = _overlap(box, (chunk.offset, chunk.size))
        assert common is not None
        target_index = tuple(slice(o - b, o - b + s) for o, b, s in zip(common[0], offset, common[1]))
        source_index = tuple(slice(o - b, o - b + s) for o, b, s in zip(common[0], chunk.offset, common[1]))
        result[target_index].copy_(source[source_index])
    return result


def _overlap(one: Box, other: Box) -> Box | None:
    offset = tuple(max(a, b) for a, b in zip(one[0], other[0]))
    end = tuple(min(a + s, b + t) for a, s, b, t in zip(one[0], one[1], other[0], other[1]))
    size = tuple(e - o for e, o in zip(end, offset))
    if any(s <= 0 for s in size):
        # A tensor without elements is covered by its own chunk.
        return (offset, size) if one == other else None
    return offset, size


def _covered(box: Box, boxes: Sequence[Box]) -> int:
    """How many elements of `box` lie in at least one of `boxes`, which lie inside of it."""
    if len(boxes) < 2:
        return sum(_count(size) for _, size in boxes)
    if all(size[1:] == box[1][1:] for _, size in boxes):
        # Rows, as nearly always: a sweep instead of a map of every element.
        rows, end = 0, 0
        for begin, count in sorted((offset[0], size[0]) for offset, size in boxes):
            rows += max(0, begin + count - max(begin, end))
            end = max(end, begin + count)
        return rows * _count(box[1][1:])
    seen = torch.zeros(box[1], dtype=torch.bool)
    for offset, size in boxes:
        seen[tuple(slice(o - b, o - b + s) for o, b, s in zip(offset, box[0], size))] = True
    return int(seen.sum())


def _count(size: Sequence[int]) -> int:
    count = 1
    for one in size:
        count *= one
    return count
