"""Copying a state into a snapshot: what each tensor needs, and several threads that do it.

Law: pieces are handed out to whoever is free, the one that waits included, so that a thread that lost its core
holds up no more than its own piece. Memory of a device is copied by the device (devices.py). Whoever starts a copy
keeps the tensors alive until it is joined. The first rule of overlapping is that it is found out when it went wrong
(`Guard`, and for a device `devices.Transfer`).
"""

from __future__ import annotations

import ctypes
import os
import random
import threading
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from autoresume.checkpoint.fetch import node_ranks
from autoresume.snapshot.devices import DeviceCopies, is_on_device
from autoresume.snapshot.layout import Copy
from autoresume.storage import pages

_PIECE_BYTES = 2 * 1024 * 1024
_SMALL_BYTES = 16 * 1024
"""Up to this, handing a piece to another thread costs more than copying it."""
_SAMPLES = 256
_SAMPLE_BYTES = 64
_MOST_THREADS = 8

_copy = ctypes.CDLL(None).memcpy  # lets other Python threads run meanwhile
_copy_small = ctypes.PyDLL(None).memcpy  # does not, which is quicker for a few bytes
_copy.argtypes = _copy_small.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_copy.restype = _copy_small.restype = None
_random = random.Random()  # noqa: S311  (where to look; and the script's own generators are not touched)

Piece = tuple[int, int, int]
"""(address of the target, address of the source, bytes)"""


def copy_threads() -> int:
    """How many threads a rank may keep busy: its share of the cores that this process may use."""
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // node_ranks()[1]))


class Recipe:
    """How a form of the state is copied into one arena: looked up tensor by tensor once.

    `late` has the addresses of memory that may wait; `steady` the numbers of leaves that are the same memory each
    time (the others are looked at anew in each `copies`). The image must stay mapped. Of a device's memory those that
    are the same are kept alive.
    """

    def __init__(
        self,
        plan: Sequence[Copy],
        tensors: Sequence[torch.Tensor],
        image: memoryview,
        late: AbstractSet[int] = frozenset(),
        steady: AbstractSet[int] = frozenset(),
    ) -> None:
        self._base = pages.address(image)
        self._whole = torch.frombuffer(image, dtype=torch.uint8)
        self._late = late
        self._fixed = Copies()
        self._late_leaves: list[int] = []
        """Of `_fixed`; their tensors are not kept alive here."""
        self._rest: list[Copy] = []
        for copy in plan:
            tensor = tensors[copy.leaf]
            if copy.leaf not in steady or not (_is_plain(tensor) or is_on_device(tensor)):
                self._rest.append(copy)
            elif self._add(copy, tensor, self._fixed):
                self._late_leaves.append(copy.leaf)
        self._fixed.late, self._fixed.now = _cut(self._fixed.late), _cut(self._fixed.now)
        self._fixed.late_device.sample()
        self._fixed.late_tensors = []

    def copies(self, tensors: Sequence[torch.Tensor]) -> Copies:
        """What is to be copied now."""
        fixed = self._fixed
        made = Copies(
            list(fixed.small),
            list(fixed.now),
            list(fixed.late),
            [tensors[leaf] for leaf in self._late_leaves],
        )
        for copy in self._rest:
            self._add(copy, tensors[copy.leaf], made)
        made.late_device.sample()
        made.device.extend(fixed.device)
        made.late_device.extend(fixed.late_device)
        return made

    def _add(self, copy: Copy, tensor: torch.Tensor, to: Copies) -> bool:
        """Put one copy where it belongs; whether it may wait."""
        _, rows, first, size, begin = copy
        if not size:
            return False
        # Inference tensors have no version counter to watch.
        large = size > _SMALL_BYTES or is_on_device(tensor)
        waits = large and tensor.data_ptr() in self._late and not tensor.is_inference()
        if waits:
            to.late_tensors.append(tensor)
        if _is_plain(tensor):
            pieces = to.small if size <= _SMALL_BYTES else to.late if waits else to.now
            pieces.append((self._base + begin, tensor.data_ptr() + first, size))
            return waits
        source = tensor.detach() if rows is None else tensor.detach()[rows[0] : rows[1]]
        target = self._whole[begin : begin + size].view(source.dtype).view(source.shape)
        if is_on_device(tensor):
            (to.late_device if waits else to.device).add(target, source)
        else:
            to.odd.append((target, source))
        return waits


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its bytes lie in the host's memory as they are written."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_neg() and not tensor.is_conj()


def copy_all(plan: Sequence[Copy], tensors: Sequence[torch.Tensor], image: memoryview) -> None:
    """Bring host memory's tensors into `image`, here and now."""
    Recipe(plan, tensors, image).copies(tensors).at_boundary()


@dataclass
class Copies:
    """All copies of a snapshot. `late` may wait while training goes on: nobody writes to that memory before the
    next step of an optimizer."""

    small: list[Piece] = field(default_factory=list)
    now: list[Piece] = field(default_factory=list)
    late: list[Piece] = field(default_factory=list)
    late_tensors: list[torch.Tensor] = field(default_factory=list)
    odd: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """(target, source): strided or lazily conjugated memory, which only torch can read."""
    device: DeviceCopies = field(default_factory=DeviceCopies)
    late_device: DeviceCopies = field(default_factory=DeviceCopies)

    def extend(self, other: Copies) -> None:
        self.small += other.small
        self.now += other.now
        self.late += other.late
        self.late_tensors += other.late_tensors
        self.odd += other.odd
        self.device.extend(other.device)
        self.late_device.extend(other.late_device)

    @property
    def waits(self) -> bool:
        """Whether anything may wait."""
        return bool(self.late) or self.late_device.any()

    def at_boundary(self, pool: ThreadPoolExecutor | None = None, threads: int = 1) -> None:
        """Copy what lies in the host's memory and can't wait, with `threads` threads, of which this is one."""
        copying = Copying(self.now, pool, threads - 1)
        for piece in self.small:
            _copy_small(*piece)
        for target, source in self.odd:
            target.copy_(source)  # resolves conj and neg
        copying.join()


class Copying:
    """Copies under way in up to `threads` threads of `pool`, and in whoever joins them."""

    def __init__(self, pieces: Sequence[Piece], pool: ThreadPoolExecutor | None = None, threads: int = 0) -> None:
        self._left = deque(_cut(pieces))
        self._undone = len(self._left)
        self._lock = threading.Lock()
        self._done = threading.Event()
        if not self._left:
            self._done.set()
        if pool is not None:
            for _ in range(min(threads, len(self._left))):
                pool.submit(self._work)

    def _work(self) -> None:
        while True:
            try:
                piece = self._left.popleft()
            except IndexError:
                return
            _copy(*piece)
            with self._lock:
                self._undone -= 1
                if not self._undone:
                    self._done.set()

    def join(self) -> None:
        """Help until nothing is left, and wait for what the others have in hand."""
        self._work()
        self._done.wait()


def _cut(pieces: Sequence[Piece]) -> list[Piece]:
    if all(size <= _PIECE_BYTES for _, _, size in pieces):
        return list(pieces)
    return [
        (target + begin, source + begin, min(_PIECE_BYTES, size - begin))
        for target, source, size in pieces
        for begin in range(0, size, _PIECE_BYTES)
    ]


class WriteDetector:
    """Finds out whether memory was written to that was to stay as it is: by torch's version counters, and by samples.

    Versions show what is done to a tensor itself; samples what is done behind its back (`.data`, numpy).
    """

    def __init__(self, copies: Copies) -> None:
        self._tensors = copies.late_tensors
        self._versions = [tensor._version for tensor in self._tensors]
        self._samples: list[tuple[int, int, bytes]] = []
        for _ in range(_SAMPLES if copies.late else 0):
            _, source, size = _random.choice(copies.late)
            count = min(_SAMPLE_BYTES, size)
            where = source + _random.randrange(size - count + 1)
            self._samples.append((where, count, ctypes.string_at(where, count)))

    def written(self) -> bool:
        return any(tensor._version != before for tensor, before in zip(self._tensors, self._versions)) or any(
            ctypes.string_at(where, count) != before for where, count, before in self._samples
        )
