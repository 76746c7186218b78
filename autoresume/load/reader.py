"""Reading a checkpoint back into tensors, for any rank of any world size.

Law: every byte that is used is verified against its digest first. A rank reads only the blocks that
hold what it needs: its own tensors, and of the shared ones the rows that its own boxes have. Bytes are read to
where the tensors will live. What a rank stored itself needs no other part; the others' are read where its own does
not hold all of a box. If every rank read all of them, that would be N x N parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autoresume.base.failpoints import failpoint
from autoresume.checkpoint.discover import load_parts
from autoresume.checkpoint.fetch import Wanted, fetch, verify_file
from autoresume.errors import CheckpointInvalid
from autoresume.format.digest import seal
from autoresume.format.manifest import Manifest
from autoresume.format.part import Chunk, Part
from autoresume.load.boxes import Box, covered_elements, elements_of, overlap_of, slices_of, span_of, strides_of
from autoresume.storage.base import Storage
from autoresume.storage.pages import use_huge_pages

_LARGE_BYTES = 4 * 1024 * 1024


class CheckpointReader:
    """One committed checkpoint. `rank` is the reader's; ranks that did not exist then read rank 0's own state."""

    def __init__(
        self, storage: Storage, manifest: Manifest, rank: int, images: Mapping[tuple[int, int], Path] | None = None
    ) -> None:
        """`images`: what this node's memory holds of tensor files, by rank and size.

        Raises CheckpointInvalid if a part is not what the manifest says.
        """
        self.storage = storage
        self.manifest = manifest
        self._images = images or {}
        self.rank = rank if rank < manifest.world_size else 0
        self.exact = rank < manifest.world_size
        """Whether the state that is each rank's own (its RNGs) really was this rank's."""
        first = dict.fromkeys([self.rank, 0])
        self.parts = dict(zip(first, load_parts(storage, manifest, first)))
        """By rank: this rank's own and rank 0's from the beginning, all once they are needed."""
        self.chunks: dict[str, list[tuple[Part, Chunk]]] = {}
        self._copies: dict[str, list[tuple[Part, Chunk]]] = {}
        self._has_all = False
        if self.exact:
            self._note([self.parts[self.rank]])
        else:
            self._read_all()

    def _read_all(self) -> bool:
        """Look at all ranks' parts from now on; False if that was so before."""
        if self._has_all:
            return False
        missing = [rank for rank in range(self.manifest.world_size) if rank not in self.parts]
        self.parts.update(zip(missing, load_parts(self.storage, self.manifest, missing)))
        self._has_all = True
        self.chunks.clear()
        self._copies.clear()
        self._note(self.parts[rank] for rank in range(self.manifest.world_size))
        return True

    def _note(self, parts: Iterable[Part]) -> None:
        for part in parts:
            for chunk in part.chunks:
                if chunk.shared or part.rank == self.rank:
                    self.chunks.setdefault(chunk.key, []).append((part, chunk))
                if _is_copy(chunk):
                    self._copies.setdefault(chunk.key, []).append((part, chunk))

    @property
    def tree(self) -> Any:
        return self.parts[self.rank].tree

    @property
    def about(self) -> dict[str, Any]:
        """What the writer noted about the run (rank 0's)."""
        return self.parts[0].about

    @property
    def unchanged(self) -> frozenset[str]:
        """The names of what this rank has in a second tensor file."""
        part = self.parts[self.rank]
        if not self.exact or part.unchanged is None:
            return frozenset()
        begin = part.tensor_files[1][0]
        return frozenset(chunk.name for chunk in part.chunks if chunk.begin >= begin)

    def attachment(self, key: str) -> bytes:
        """A pickled object's bytes, verified. Raises CheckpointInvalid."""
        file = self.parts[self.rank].attachments.get(key)
        if file is None:
            raise CheckpointInvalid(f"the attachment {key!r} of rank {self.rank} is missing")
        data = self.storage.read(self.manifest.checkpoint.inside(file.name))
        view = memoryview(data)
        for index, expected in enumerate(file.digests):
            if seal(view[index * file.block_bytes : (index + 1) * file.block_bytes]) != expected:
                raise CheckpointInvalid(f"{file.name} is damaged: its digest differs")
        return data

    def verify_attachment(self, key: str) -> None:
        """Read a file of rank 0's part against its digests, keeping none of it. Raises CheckpointInvalid."""
        verify_file(self.storage, self.manifest.checkpoint, self.parts[0].attachments[key])

    def read(
        self, wanted: Mapping[str, Box | None], into: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """The tensors of the keys in `wanted`: the given box of each, or all of it. On the CPU, verified.

        `into` may give the memory for some of them: a dense tensor on the CPU of the same dtype and size, which is
        returned, filled. Raises CheckpointInvalid when a key is missing, is not wholly covered, or a digest differs;
        only in the last case has `into` been touched, and holds no one knows what.
        """
        return dict(zip(wanted, self.read_boxes(list(wanted.items()), into)))

    def read_boxes(
        self, wanted: Sequence[tuple[str, Box | None]], into: Mapping[str, torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """The same for any number of boxes of each key, in their order."""
        into = into or {}
        found = [(key, self.describe(key), box is None, *self._pieces(key, box)) for key, box in wanted]
        plan, results = _Plan(), []
        for key, described, whole, box, pieces in found:
            target = into[key] if key in into else new_tensor(box[1], getattr(torch, described.dtype))
            for part, chunk in pieces:
                plan.put(target, box, part, chunk, whole)
            results.append(target)
        images = {}
        for rank, begin in plan.files:
            image = self._images.get((rank, self.parts[rank].image_bytes))
            if image is not None:
                images[plan.files[rank, begin].file.name] = image, begin
        fetch(self.storage, self.manifest.checkpoint, list(plan.files.values()), images)
        plan.finish()
        failpoint("restore.read")
        return results

    def describe(self, key: str) -> Chunk:
        """Any chunk of the tensor: its dtype and whole shape. Raises CheckpointInvalid."""
        sources = self._known(key)
        if not sources:
            sources = self.sources(key)
        first = sources[0][1]
        if len(sources) > 1 and any((chunk.dtype, chunk.shape) != (first.dtype, first.shape) for _, chunk in sources):
            raise CheckpointInvalid(f"the parts disagree about the dtype or the shape of tensor {key!r}")
        return first

    def sources(self, key: str) -> list[tuple[Part, Chunk]]:
        """Where a tensor lies: its boxes, with their parts. Of equal boxes this rank's own, or the lowest rank's."""
        self._read_all()
        found = self._known(key)
        if not found:
            raise CheckpointInvalid(f"the tensor {key!r} is in no part of {self.manifest.checkpoint}")
        return found

    def _known(self, key: str) -> list[tuple[Part, Chunk]]:
        """The same in the parts that were read so far."""
        found = self.chunks.get(key, [])
        if found and not _is_copy(found[0][1]):
            return found
        each: dict[Box, tuple[Part, Chunk]] = {}
        for part, chunk in [*found, *self._copies.get(key, [])]:
            each.setdefault((chunk.offset, chunk.size), (part, chunk))
        return list(each.values())

    def _pieces(self, key: str, box: Box | None) -> tuple[Box, list[tuple[Part, Chunk]]]:
        whole = self.describe(key)
        if box is None:
            box = ((0,) * len(whole.shape), whole.shape)
        known = self._known(key)
        if len(known) == 1 and (known[0][1].offset, known[0][1].size) == box:
            return box, known  # as nearly always
        needed = elements_of(box[1])
        # Counted before they are looked at: what a shape claims may be more than any memory.
        pieces, common, held = self._overlapping(key, box)
        if held < needed and self._read_all():
            self.describe(key)
            pieces, common, held = self._overlapping(key, box)
        if held < needed:
            raise CheckpointInvalid(f"tensor {key!r}: the parts hold {held} of the {needed} elements that are needed")
        if held > needed or covered_elements(box, common) != held:
            ranks = sorted({part.rank for part, _ in pieces})
            raise CheckpointInvalid(f"tensor {key!r}: the same elements are stored by several of the ranks {ranks}")
        return box, pieces

    def _overlapping(self, key: str, box: Box) -> tuple[list[tuple[Part, Chunk]], list[Box], int]:
        """The chunks that hold something of `box`, what of it each holds, and how many elements that is."""
        pieces, common = [], []
        for part, chunk in self._known(key):
            overlap = overlap_of(box, (chunk.offset, chunk.size))
            if overlap is not None:
                pieces.append((part, chunk))
                common.append(overlap)
        return pieces, common, sum(elements_of(size) for _, size in common)


class _Plan:
    """Which bytes of which files go where, for any number of boxes."""

    def __init__(self) -> None:
        self.files: dict[tuple[int, int], Wanted] = {}
        """By the rank, and the byte of its image that the file begins at."""
        self._staged: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Bytes that don't lie as they are wanted, read to the side, and the tensors that they are copied to."""

    def put(self, target: torch.Tensor, box: Box, part: Part, chunk: Chunk, whole: bool) -> None:
        """Fill what `target`, which is `box`, has of a chunk. `whole`: other ranks of this node want it, too."""
        base, record = max(one for one in part.tensor_files if one[0] <= chunk.begin)
        file = self.files.get((part.rank, base))
        if file is None:
            file = self.files[part.rank, base] = Wanted(record)
        if box == (chunk.offset, chunk.size) and target.is_contiguous():
            file.want(chunk.begin - base, _bytes(target), chunk.shared and whole)
            return
        common = overlap_of(box, (chunk.offset, chunk.size))
        assert common is not None
        count = elements_of(common[1])
        if not count:
            return
        first, span = span_of(common, (chunk.offset, chunk.size))
        begin = chunk.begin - base + first * target.element_size()
        where, room = span_of(common, box)
        if span == room == count and target.is_contiguous():
            source = target.view(-1)[where : where + count]
        else:
            # Elements of others lie between: all is read, and what is wanted picked out of it.
            source = torch.empty(span, dtype=target.dtype)
            picked = source.as_strided(common[1], strides_of(chunk.size))
            self._staged.append((target[slices_of(common, box)], picked))
        file.want(begin, _bytes(source), chunk.shared and whole)

    def finish(self) -> None:
        for target, picked in self._staged:
            target.copy_(picked)


def new_tensor(size: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Memory of torch's own: a tensor that begins at an odd address is computed with by other instructions, and rounds
    otherwise."""
    made = torch.empty(size, dtype=dtype)
    if made.nbytes >= _LARGE_BYTES:
        use_huge_pages(made.data_ptr(), made.nbytes)
    return made


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    found: memoryview = tensor.detach().view(-1).view(torch.uint8).numpy().data
    return found


def _is_copy(chunk: Chunk) -> bool:
    """A rank's own box of a tensor that is sharded over some of the ranks, and perhaps over others just the same."""
    return not chunk.shared and chunk.size != chunk.shape
