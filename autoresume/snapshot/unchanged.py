"""Which tensors did not change between two saves: frozen weights, as a rule.

Law: what is found here is a guess about the saves to come, and decides only which tensors lie together in a file.
Whether such a file is the same as before is known from all its digests, each time it is persisted
(checkpoint/persist.py). Two saves in a row are looked at, in the background, and two of every sixteen: what is frozen
or thawed meanwhile is found then. `Tensor._version` tells nothing: neither fused optimizers nor what is written
through `.data` move it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import xxhash

from autoresume.format.part import Chunk

_EACH = 16
_LEAST_TENSOR = 64 * 1024
"""Smaller ones are not worth it, and of some (generators, counters) it is chance that they stayed."""
_LEAST = 1024 * 1024
"""Below this a second file costs more than it spares."""


_Digests = dict[str, tuple[int, int]]
"""name -> (bytes, digest)"""


class Unchanged:
    """`names` are the chunks that go to a second file from the next save on. Without `looks` there are never any."""

    def __init__(self, looks: bool = True) -> None:
        self.names: frozenset[str] = frozenset()
        self._looks = looks
        self._saves, self._step = 0, -1
        self._before: _Digests | None = None
        self._looking: Future[_Digests] | None = None

    def resume(self, names: frozenset[str]) -> None:
        """With what the checkpoint has in its second file, that this process goes on from."""
        if self._looks:
            self.names = names

    def start_comparing(self, step: int, image: memoryview, chunks: Sequence[Chunk], pool: ThreadPoolExecutor) -> None:
        """At a snapshot, if it is one's turn. The image must stay as it is until `finish_comparing` has returned."""
        if step == self._step:
            return  # everything is as it was
        self._step, turn, self._saves = step, self._saves % _EACH, self._saves + 1
        if turn < 2 and self._looks:
            self._looking = pool.submit(_digests, image, chunks)

    def finish_comparing(self) -> None:
        """Wait for what is being looked at, and conclude from it."""
        looking, self._looking = self._looking, None
        if looking is None:
            return
        now, before = looking.result(), self._before
        if before is None:
            self._before = now
            return
        self._before = None
        same = {name: size for name, (size, value) in now.items() if before.get(name) == (size, value)}
        self.names = frozenset(same) if sum(same.values()) >= _LEAST else frozenset()


def _digests(image: memoryview, chunks: Sequence[Chunk]) -> _Digests:
    return {
        chunk.name: (chunk.bytes, xxhash.xxh3_64_intdigest(image[chunk.begin : chunk.begin + chunk.bytes]))
        for chunk in chunks
        if chunk.bytes >= _LEAST_TENSOR
    }
