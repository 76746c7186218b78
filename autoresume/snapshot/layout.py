"""Which bytes of the state this rank stores, and where: planned once, reused until the state changes its form.

What has not changed lately goes to a file of its own, which lies behind the other in the image.

Law: planning is local and deterministic; no message is needed. State that every rank holds in full is
split along the first dimension, in proportion to bytes, by a rule that gives every row to exactly one
rank. State that is sharded already (DTensor), or a rank's own, is stored as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

from autoresume.errors import StateError
from autoresume.format.part import Chunk, chunk_name, chunks_json
from autoresume.format.tensorfile import Entry, Layout, aligned, item_bytes, lay_out
from autoresume.state.capture import Leaf


class Copy(NamedTuple):
    """`bytes` bytes of leaf number `leaf`, from its byte `first` on, go to byte `begin` of the image.

    `rows` are the same in rows of the leaf, [first, last); None: all of it.
    """

    leaf: int
    rows: tuple[int, int] | None
    first: int
    bytes: int
    begin: int


@dataclass(frozen=True)
class Plan:
    """The image of one rank: `chunks` and `copies` are in its order."""

    signature: tuple[Any, ...]
    layout: Layout
    unchanged: Layout | None
    """Of the second file, if there is one."""
    chunks: tuple[Chunk, ...]
    copies: tuple[Copy, ...]
    chunks_json: bytes

    @property
    def bytes(self) -> int:
        return self.layout.size if self.unchanged is None else aligned(self.layout.size) + self.unchanged.size

    @property
    def first_bytes(self) -> int | None:
        """Of the first file, if there is a second."""
        return None if self.unchanged is None else self.layout.size

    @property
    def second_copies(self) -> tuple[Copy, ...]:
        """Those that go to the second file."""
        return () if self.unchanged is None else self.copies[len(self.layout.entries) :]

    def write_headers(self, image: memoryview) -> None:
        """Write what stands in front of the tensors."""
        image[: len(self.layout.header)] = self.layout.header
        if self.unchanged is not None:
            base = aligned(self.layout.size)
            image[base : base + len(self.unchanged.header)] = self.unchanged.header


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


def make_plan(
    leaves: Sequence[Leaf],
    rank: int,
    world_size: int,
    metadata: dict[str, str],
    unchanged: AbstractSet[str] = frozenset(),
) -> Plan:
    """`unchanged` names chunks that go to a file of their own. Raises StateError for tensors that the file format can't
    hold."""
    split = sorted((index for index, leaf in enumerate(leaves) if leaf.split), key=lambda index: leaves[index].key)
    tensors = [leaves[index].tensor for index in split]
    mine = shares(
        [tensor.numel() * item_bytes(leaves[index].dtype) for index, tensor in zip(split, tensors)],
        [tensor.shape[0] if tensor.dim() else 1 for tensor in tensors],
        rank,
        world_size,
    )
    rows_of = dict(zip(split, mine))
    boxes: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, int] | None]] = {}
    entries = []
    for index, leaf in enumerate(leaves):
        rows = rows_of.get(index)
        if rows is not None and rows[0] >= rows[1]:
            continue
        offset, size = leaf.offset, tuple(leaf.tensor.shape)
        if rows is not None and size and rows != (0, size[0]):
            offset, size = (rows[0], *offset[1:]), (rows[1] - rows[0], *size[1:])
        else:
            rows = None
        name = chunk_name(leaf.key, leaf.shape, offset, size)
        if name in boxes:
            raise StateError(f"two tensors are called {leaf.key!r}; names of tracked state must be unique")
        boxes[name] = index, offset, size, rows
        entries.append(Entry(name, leaf.dtype, size))
    layout = lay_out([entry for entry in entries if entry.name not in unchanged], metadata)
    places = list(zip(layout.entries, layout.begins))
    second = None
    if not unchanged.isdisjoint(boxes):
        second, base = lay_out([e for e in entries if e.name in unchanged], metadata), aligned(layout.size)
        places += [(entry, base + begin) for entry, begin in zip(second.entries, second.begins)]
    placed, copies = [], []
    for entry, begin in places:
        index, offset, size, rows = boxes[entry.name]
        leaf, count = leaves[index], entry.bytes
        placed.append(Chunk(leaf.key, leaf.dtype, leaf.shape, offset, size, leaf.shared, begin))
        first = rows[0] * (count // (rows[1] - rows[0])) if rows is not None else 0
        copies.append(Copy(index, rows, first, count, begin))
    return Plan(signature(leaves), layout, second, tuple(placed), tuple(copies), chunks_json(placed))
