"""Which bytes of the state this rank stores, and where: planned once, reused until the state changes its form.

Law: planning is local and deterministic; no message is needed. State that every rank holds in full is
split along the first dimension, in proportion to bytes, by a rule that gives every row to exactly one
rank. State that is sharded already (DTensor), or a rank's own, is stored as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autoresume.errors import StateError
from autoresume.format.manifest import Chunk
from autoresume.format.tensorfile import Entry, Layout, item_bytes, lay_out
from autoresume.training.state import Leaf


@dataclass(frozen=True)
class Copy:
    """Rows [first, last) of leaf number `leaf` go to byte `begin` of the file; all of it if `rows` is None."""

    leaf: int
    rows: tuple[int, int] | None
    begin: int


@dataclass(frozen=True)
class Plan:
    """The file of one rank: `chunks` and `copies` are in the file's order."""

    signature: tuple[Any, ...]
    layout: Layout
    chunks: tuple[Chunk, ...]
    copies: tuple[Copy, ...]

    @property
    def bytes(self) -> int:
        return self.layout.size


def signature(leaves: Sequence[Leaf]) -> tuple[Any, ...]:
    """Equal for two captures that have the same layout."""
    return tuple(
        (leaf.key, leaf.dtype, leaf.shape, leaf.offset, leaf.tensor.shape, leaf.split, leaf.shared) for leaf in leaves
    )


def shares(sizes: Sequence[int], rows: Sequence[int], rank: int, world_size: int) -> list[tuple[int, int]]:
    """Rows [first, last) of each tensor that `rank` stores; `sizes` in bytes, `rows` along the first dimension.

    The cuts are the same whoever computes them, so all ranks' shares together are each row once.
    """
    total = sum(sizes)
    found, begin = [], 0
    for size, count in zip(sizes, rows):

        def cut(which: int, begin: int = begin, size: int = size, count: int = count) -> int:
            if not size:
                return 0 if which <= 0 else count
            position = total * which // world_size - begin
            return min(max(0, (position * count + size // 2) // size), count)

        # The last cut is the end of everything: rounding must not leave a row over.
        found.append((cut(rank), count if rank + 1 == world_size else cut(rank + 1)))
        begin += size
    return found


def make_plan(leaves: Sequence[Leaf], rank: int, world_size: int, metadata: dict[str, str]) -> Plan:
    """Raises StateError for tensors that the file format can't hold."""
    split = sorted((index for index, leaf in enumerate(leaves) if leaf.split), key=lambda index: leaves[index].key)
    tensors = [leaves[index].tensor for index in split]
    mine = shares(
        [tensor.numel() * item_bytes(leaves[index].dtype) for index, tensor in zip(split, tensors)],
        [tensor.shape[0] if tensor.dim() else 1 for tensor in tensors],
        rank,
        world_size,
    )
    rows_of = dict(zip(split, mine))
    chunks: dict[str, tuple[Chunk, int, tuple[int, int] | None]] = {}
    for index, leaf in enumerate(leaves):
        rows = rows_of.get(index)
        if rows is not None and rows[0] >= rows[1]:
            continue
        offset, size = leaf.offset, tuple(leaf.tensor.shape)
        if rows is not None and size and rows != (0, size[0]):
            offset, size = (rows[0], *offset[1:]), (rows[1] - rows[0], *size[1:])
        else:
            rows = None
        chunk = Chunk(leaf.key, leaf.dtype, leaf.shape, offset, size, leaf.shared, 0)
        if chunk.name in chunks:
            raise StateError(f"two tensors are called {leaf.key!r}; names of tracked state must be unique")
        chunks[chunk.name] = (chunk, index, rows)
    layout = lay_out([Entry(name, chunk.dtype, chunk.size) for name, (chunk, _, _) in chunks.items()], metadata)
    placed, copies = [], []
    for entry, begin in zip(layout.entries, layout.begins):
        chunk, index, rows = chunks[entry.name]
        placed.append(Chunk(chunk.key, chunk.dtype, chunk.shape, chunk.offset, chunk.size, chunk.shared, begin))
        copies.append(Copy(index, rows, begin))
    return Plan(signature(leaves), layout, tuple(placed), tuple(copies))


def execute(plan: Plan, leaves: Sequence[Leaf], image: memoryview) -> None:
    """Copy the state into `image`, which then is the tensor file, byte for byte."""
    image[: len(plan.layout.header)] = plan.layout.header
    whole = torch.frombuffer(image, dtype=torch.uint8)
    for copy in plan.copies:
        leaf = leaves[copy.leaf]
        source = leaf.tensor if copy.rows is None else leaf.tensor[copy.rows[0] : copy.rows[1]]
        if source.numel():
            end = copy.begin + source.numel() * source.element_size()
            # conj/neg views are lazy: copy_ resolves them.
            whole[copy.begin : end].view(source.dtype).view(source.shape).copy_(source)
