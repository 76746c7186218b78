"""Looking at tensors that are the same on all ranks, again and again: which bytes at which save; their fingerprints.

Law: all ranks look at the same bytes at the same turn, as they are at the save's boundary, by copies that are made with
those of the snapshot: nothing more waits, and what was written to meanwhile is found out. Up to 16 MiB are all looked
at each time. Of more, each save looks at one of at most 64 slices, so that 64 saves have seen every byte, and at some
bytes of up to 128 tensors besides, since what parts does so all over as a rule.
"""

from __future__ import annotations

import bisect
import itertools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from autoresume.format.digest import digest
from autoresume.format.part import Chunk, Replicas
from autoresume.format.tensorfile import item_bytes
from autoresume.handoff.arena import Arena
from autoresume.snapshot import devices
from autoresume.snapshot.copies import Copies, Recipe
from autoresume.snapshot.layout import Copy
from autoresume.state.capture import Leaf

MOST_SLICES = 64
SLICE_BYTES = 16 * 1024 * 1024
ALL = -1
"""The turn at which everything is looked at."""
_SAMPLED_TENSORS = 128
_SAMPLE_BYTES = 256
_LARGEST_SAMPLE = 64 * 1024
_GOLDEN = 0x9E3779B97F4A7C15
_WORDS = 4096
_CONCLUDED_AT_ONCE = 1024 * 1024
_SPARE_BYTES = 1024 * 1024
_WEIGHED_WORDS = 2**21
_ALIGNED = 64


def word_of(key: str) -> int:
    """Which word the fingerprints of `key` go to: ranks compare a fixed number of words, whatever each one holds."""
    return zlib.crc32(key.encode()) % _WORDS


def _form(dtype: str, shape: tuple[int, ...]) -> int:
    return xxhash.xxh3_64_intdigest(repr((dtype, shape)).encode())


class Words:
    """Fingerprints of tensors by their keys, put together in words."""

    def __init__(self, numbers: np.ndarray | None = None) -> None:
        self.numbers = np.zeros(_WORDS, dtype=np.uint64) if numbers is None else numbers.copy()

    def add(self, key: str, fingerprint: int) -> None:
        self.numbers[word_of(key)] ^= np.uint64(xxhash.xxh3_64_intdigest(key.encode(), seed=fingerprint))

    @property
    def digest(self) -> str:
        return digest(self.numbers.tobytes())


@dataclass(frozen=True)
class Watched:
    """A tensor that every rank stores a share of; a row is all that has one index in the first dimension."""

    leaf: int
    key: str
    rows: int
    row_bytes: int


@dataclass
class Watch:
    """What is looked at as long as a plan is used. `unproven` are chunks of what may turn out to be the same on all
    ranks, and is stored by each for now."""

    watched: list[Watched]
    ends: list[int]
    """Where each one's bytes end, all taken as one sequence."""
    form: Words
    unproven: list[Chunk]

    @classmethod
    def of(cls, leaves: Sequence[Leaf], unproven: list[Chunk]) -> Watch:
        watched, form = [], Words()
        for index, leaf in enumerate(leaves):
            if leaf.split:
                form.add(leaf.key, _form(leaf.dtype, leaf.shape))
                rows = leaf.tensor.shape[0] if leaf.tensor.dim() else 1
                row_bytes = math.prod(leaf.tensor.shape[1:]) * item_bytes(leaf.dtype)
                watched.append(Watched(index, leaf.key, rows, row_bytes))
        watched.sort(key=lambda one: one.key)
        return cls(watched, list(itertools.accumulate(one.rows * one.row_bytes for one in watched)), form, unproven)

    @property
    def slices(self) -> int:
        """How many saves it takes to see every byte."""
        return max(1, min(MOST_SLICES, -(-(self.ends[-1] if self.ends else 0) // SLICE_BYTES)))

    def rows_at(self, turn: int) -> Iterable[tuple[Watched, int, int]]:
        """Rows [first, last) of tensors."""
        count = self.slices
        total = self.ends[-1] if self.ends else 0
        begin, end = total * (turn % count) // count, total * (turn % count + 1) // count
        for index in range(bisect.bisect_right(self.ends, begin), len(self.watched)):
            one = self.watched[index]
            start = self.ends[index] - one.rows * one.row_bytes
            if start >= end:
                break
            first, last = (min(max(0, -(-(cut - start) // one.row_bytes)), one.rows) for cut in (begin, end))
            if first < last:
                yield one, first, last
        if count > 1:
            yield from self._samples(turn)

    def _samples(self, turn: int) -> Iterable[tuple[Watched, int, int]]:
        count = min(_SAMPLED_TENSORS, len(self.watched))
        for number in range(turn * count, (turn + 1) * count):
            one = self.watched[number % len(self.watched)]
            rows = min(one.rows, max(1, _SAMPLE_BYTES // one.row_bytes))
            if rows * one.row_bytes <= _LARGEST_SAMPLE:
                first = number * _GOLDEN % 2**64 * (one.rows - rows + 1) >> 64
                yield one, first, first + rows


@dataclass
class Look:
    """What was looked at with one snapshot. `numbers` are what the ranks compare."""

    watch: Watch
    turn: int
    replicas: Replicas
    numbers: np.ndarray

    @classmethod
    def of(cls, watch: Watch, turn: int, fingerprints: Mapping[str, int], image: memoryview | None = None) -> Look:
        """`image` is the snapshot's, that holds what is not proven to be the same on all ranks."""
        words, unproven = Words(watch.form.numbers), Words()
        for key, fingerprint in fingerprints.items():
            words.add(key, fingerprint)
        if image is not None:
            for chunk in watch.unproven:
                data, form = image[chunk.begin : chunk.begin + chunk.bytes], _form(chunk.dtype, chunk.shape)
                unproven.add(chunk.key, xxhash.xxh3_64_intdigest(data, seed=form))
        numbers = np.concatenate((words.numbers, unproven.numbers)).view(np.int64)
        return cls(watch, turn, Replicas(watch.form.digest, turn, words.digest), numbers)


@dataclass
class Looking:
    """A look whose bytes are on their way to `scratch`, by copies that are made with those of the snapshot."""

    watch: Watch
    turn: int
    copies: Copies
    scratch: memoryview
    places: list[tuple[str, int, int]]
    """(key, begin, bytes) in `scratch`."""
    done: Look | None = None
    """Where all was looked at before: nothing is to be copied."""

    @classmethod
    def over(cls, look: Look) -> Looking:
        return cls(look.watch, look.turn, Copies(), memoryview(b""), [], look)

    @property
    def is_large(self) -> bool:
        """Whether to conclude it takes longer than to have another thread do so."""
        return (
            self.done is None
            and len(self.scratch) + sum(chunk.bytes for chunk in self.watch.unproven) > _CONCLUDED_AT_ONCE
        )

    def conclude(self, image: memoryview) -> Look:
        """Once all is copied, to `scratch` and to the snapshot's `image`."""
        if self.done is not None:
            return self.done
        found: dict[str, int] = {}
        for key, begin, size in self.places:
            found[key] = xxhash.xxh3_64_intdigest(self.scratch[begin : begin + size], seed=found.get(key, 0))
        return Look.of(self.watch, self.turn, found, image)


class Looks:
    """Makes looks, one at a time: they share their memory."""

    def __init__(self) -> None:
        self._scratch: _Scratch | None = None
        self._coming: Future[_Scratch] | None = None

    def prepare(self, watch: Watch, pool: ThreadPoolExecutor) -> None:
        """Make in the background the memory that a look takes, as far as that is known: new pages take long."""
        size = watch.ends[-1] // watch.slices if watch.ends else 0
        self._coming = pool.submit(_Scratch, size + size // 8 + _SPARE_BYTES)

    def begin(
        self, watch: Watch, turn: int, tensors: Sequence[torch.Tensor], late: AbstractSet[int] = frozenset()
    ) -> Looking:
        """What is to be copied now, or may wait where it is in `late`."""
        plan, places, begin = [], [], 0
        for one, first, last in watch.rows_at(turn):
            size = (last - first) * one.row_bytes
            rows = None if last - first == one.rows else (first, last)
            plan.append(Copy(one.leaf, rows, first * one.row_bytes, size, begin))
            places.append((one.key, begin, size))
            begin += size + -size % _ALIGNED
        scratch = self._memory(begin)
        copies = Recipe(plan, tensors, scratch, late).copies(tensors)
        return Looking(watch, turn if watch.slices > 1 else 0, copies, scratch, places)

    def _memory(self, size: int) -> memoryview:
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self._scratch = coming.result()
        if self._scratch is None or self._scratch.arena.size < size:
            self.close()
            self._scratch = _Scratch(size + size // 8 + _SPARE_BYTES)
        return self._scratch.arena.view(max(size, 1))

    def close(self) -> None:
        for scratch in (self._scratch, self._coming.result() if self._coming is not None else None):
            if scratch is not None:
                scratch.close()
        self._scratch = self._coming = None


class _Scratch:
    """Memory of this rank's own, pinned where it uses CUDA."""

    def __init__(self, size: int) -> None:
        self.arena = Arena(size)
        self._pinned = devices.pin(self.arena.view(self.arena.size))

    def close(self) -> None:
        if self._pinned:
            devices.unpin(self.arena.view(self.arena.size))
        self.arena.close()


# -- everything, at once ------------------------------------------------------------------------------


def fingerprints(leaves: Sequence[Leaf], threads: int) -> dict[str, int]:
    """Of all of each tensor as it is now, with its type and shape."""
    device = [_weigh(leaf.tensor) if devices.is_on_device(leaf.tensor) else None for leaf in leaves]
    with ThreadPoolExecutor(threads, "autoresume-look") as pool:
        host = pool.map(lambda leaf: 0 if devices.is_on_device(leaf.tensor) else _hash(leaf.tensor), leaves)
        found = [value if sums is None else _hash(sums) for sums, value in zip(device, host)]
    return {leaf.key: _form(leaf.dtype, leaf.shape) ^ value for leaf, value in zip(leaves, found)}


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)


def _hash(tensor: torch.Tensor) -> int:
    return xxhash.xxh3_64_intdigest(_bytes_of(tensor).cpu().numpy().data) if tensor.numel() else 0


def _weigh(tensor: torch.Tensor) -> torch.Tensor:
    """Sums of the words of each piece, each word times an odd number of its place: what a device computes quicker than
    it brings the bytes to the host. Any change of one word shows, and of several but for one chance in 2**64 or so."""
    flat = _bytes_of(tensor)
    if len(flat) % 8 or flat.data_ptr() % 8:
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8))
    words = flat.view(torch.int64)
    places = torch.arange(min(len(words), _WEIGHED_WORDS), device=words.device)
    weights = (places * (_GOLDEN - 2**64)).bitwise_or_(1)
    return torch.stack([(piece * weights[: len(piece)]).sum() for piece in torch.split(words, _WEIGHED_WORDS)])
