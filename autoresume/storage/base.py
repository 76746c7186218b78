"""The seam between checkpoints and where their bytes live."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from autoresume.storage.reading import Target


class Reader(Protocol):
    """An open file, which many threads may read from at once. It is closed by whoever opened it."""

    def fill(
        self, begin: int, end: int, targets: Sequence[Target] = (), through_cache: bool = False
    ) -> Iterator[memoryview]:
        """Read the bytes [begin, end) to the targets that lie in them, and show all of them, in order, in pieces.

        The targets are sorted, and don't overlap; parts of them that lie outside are left alone. A piece may be looked
        at until the next one is asked for; a target holds its bytes when the last one was. With `through_cache` the
        bytes are left where others on this node find them. Raises OSError, and EOFError when the file is too short.
        """

    def close(self) -> None:
        """Give it back."""


class Storage(Protocol):
    """A folder, wherever it is. Names are relative and use "/".

    Every verb raises OSError when the storage fails. After a crash at any moment each name holds
    either what `write` or `create` published last and returned from, or something older, never a mix.
    """

    def list(self, folder: str) -> list[str]:
        """The names directly inside `folder`, sorted; empty when there is no such folder."""

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None when there is none."""

    def read(self, name: str, into: memoryview | None = None, offset: int = 0) -> bytes:
        """The whole file; or, with `into`, exactly len(into) bytes from `offset` (and b"" is returned).

        Raises FileNotFoundError, and EOFError when the file is too short.
        """

    def reader(self, name: str) -> Reader:
        """The file, to be read in pieces. Raises FileNotFoundError."""

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Publish a file atomically, replacing what was there. Durable when it returns, its name too."""

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Like `write`, to a folder that is there: FileNotFoundError where somebody has removed it."""

    def sync(self, name: str) -> None:
        """Make what was appended to a file, or published in a folder, durable. There need be none."""

    def link(self, name: str, new: str, or_copy: bool = True) -> None:
        """Make `new` the same file as `name`, replacing what was there. Atomic, and durable when it returns.

        Whoever publishes `name` anew later does not change `new`. Where a file can't have two names it is copied, or,
        without `or_copy`, OSError is raised.
        """

    def create(self, name: str, data: bytes) -> bool:
        """Publish a file only if the name is free: of any number of callers one gets True. Durable then."""

    def move(self, folder: str, new: str) -> None:
        """Rename a folder or a file; the new name must be free. Durable when it returns."""

    def remove(self, name: str) -> None:
        """Delete a file or a folder with all it holds; nothing happens when there is none."""

    def free_bytes(self) -> int | None:
        """What can still be written, or None where the storage doesn't tell."""
