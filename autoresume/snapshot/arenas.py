"""The memory that a rank's snapshots are taken into: made ahead of the first save, used again and again.

Law: one arena while nothing is being persisted, two at most. An arena that is being persisted is not touched. When
the node's memory in files is too small, or its daemon is gone, `give_up` says so, and arenas are this process's own
from then on. Where the process uses CUDA they are pinned.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from autoresume.handoff.arena import Arena
from autoresume.snapshot.devices import pin, unpin
from autoresume.snapshot.sinks import Sink

log = logging.getLogger("autoresume")

_MOST = 2
_SPARE_BYTES = 64 * 1024
"""So that the header of a second tensor file, which may come later, needs no other arena."""


class Arenas:
    """`folder` is on tmpfs, or None: this process's own memory. `give_up(why)` must call `abandon`."""

    def __init__(
        self,
        rank: int,
        folder: Path | None,
        sink: Callable[[], Sink],
        give_up: Callable[[str], None],
    ) -> None:
        self._rank, self._folder = rank, folder
        self._sink, self._give_up = sink, give_up
        self._arenas: list[Arena] = []
        self._pinned: set[Arena] = set()
        self._coming: Future[Arena] | None = None

    def prepare(self, size: int, pool: ThreadPoolExecutor) -> None:
        """Make an arena of `size` bytes in the background, if there is none and none is being made."""
        if not self._arenas and self._coming is None:
            self._coming = pool.submit(self._make, size)

    def acquire(self, size: int) -> Arena:
        """An arena of at least `size` bytes, with all its pages; waits while all are being persisted."""
        self._arrive()
        while True:
            for arena in list(self._arenas):
                if not self._sink().busy(arena):
                    self._arenas.remove(arena)
                    if arena.size >= size:
                        self._sink().forget(arena)
                        self._arenas.append(arena)  # the one that was used least recently comes first
                        return arena
                    self._discard(arena)
            if len(self._arenas) < _MOST and (made := self._made(size)) is not None:
                self._arenas.append(made)
                return made
            if not self._sink().alive():
                self._give_up("the node daemon is gone")
                continue
            time.sleep(0.002)

    def use_own_memory(self) -> None:
        """Go on with this process's own memory."""
        self.close(unlink=True)
        self._folder = None

    def close(self, unlink: bool = False) -> None:
        """With `unlink` the daemon has no use for them any more."""
        self._arrive()
        for arena in self._arenas:
            self._discard(arena, unlink)
        self._arenas.clear()

    def _discard(self, arena: Arena, unlink: bool = True) -> None:
        if arena in self._pinned:
            self._pinned.remove(arena)
            unpin(arena.view(arena.size))
        arena.close(unlink)

    def _arrive(self) -> None:
        """Take what was made in the background. What went wrong there goes wrong again when it is needed."""
        if self._coming is not None:
            coming, self._coming = self._coming, None
            if coming.exception() is None:
                self._arenas.append(coming.result())
            else:
                log.debug("no arena ahead of the first save: %s", coming.exception())

    def _made(self, size: int) -> Arena | None:
        """A new arena; None if there is no room for one more, and another will be free soon."""
        try:
            return self._make(size)
        except MemoryError as error:
            if self._arenas:
                return None
            self._give_up(
                f"{error}: snapshots are kept in this rank's own memory instead, and are lost with it if it is killed. "
                "Give the node a larger /dev/shm, or the job more memory where that counts against it"
            )
            return self._make(size)

    def _make(self, size: int) -> Arena:
        path = None
        if self._folder is not None:
            path = self._folder / f"arena-{self._rank:05d}-{time.monotonic_ns():x}"
        arena = Arena(size + _SPARE_BYTES, path)
        if pin(arena.view(arena.size)):
            self._pinned.add(arena)
        return arena
