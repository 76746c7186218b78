"""What becomes of a checkpoint that can't be written.

Law: training goes on and older checkpoints stay; the error says which of them is the last good one,
and what to do. What can never be committed any more is deleted at once, since on a full disk it takes
the room of the next one: a checkpoint lacks the part of the rank that gave it up, and only that rank
could have written it. Nothing that was committed, or still may be, is touched.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator

from autoresume.errors import AutoresumeError, StaleIncarnation, StorageFailed, StorageFull
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.storage.base import Storage

_ADVICE = {
    errno.ENOSPC: "Free some space, or lower `keep`.",
    errno.EDQUOT: "Free some space, lower `keep`, or ask for a larger quota.",
    errno.EROFS: "The file system was made read-only, as happens after an error of the disk: look at the machine's "
    "log, and have it mounted for writing again.",
    errno.EIO: "The disk, or the server behind it, fails: look at the machine's log.",
    errno.EACCES: "Somebody changed the permissions of the run directory: put them right.",
}


def explain(error: OSError, storage: Storage, name: CheckpointName) -> AutoresumeError:
    """StorageFull or StorageFailed in place of `error`: what happens next, and what to do."""
    kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageFailed
    advice = _ADVICE.get(error.errno or 0, "")
    what = error.strerror if advice else str(error)
    said = f"checkpoint {name} can't be written: {what}; training goes on, and {last_good(storage)} {advice}"
    return kind(said.rstrip())


def last_good(storage: Storage) -> str:
    """A sentence about what a resume would begin with."""
    newest = None
    with contextlib.suppress(OSError):
        committed = (name for name in folders(storage) if has_manifest(storage, name))
        newest = max(committed, default=None)
    if newest is None:
        return "there is no older one to go back to."
    return f"{newest} stays the last good checkpoint."


@contextlib.contextmanager
def explained(storage: Storage, name: CheckpointName) -> Iterator[None]:
    """Errors of the storage in this block come out as `explain` puts them."""
    try:
        yield
    except OSError as error:
        raise explain(error, storage, name) from error


@contextlib.contextmanager
def or_abandoned(storage: Storage, name: CheckpointName, rank: int, guard: Callable[[], None]) -> Iterator[None]:
    """The block writes one rank's part of `name`; if it fails, what that makes worthless is deleted."""
    try:
        yield
    except StaleIncarnation:
        raise  # whatever lies there is no longer ours
    except AutoresumeError:
        with contextlib.suppress(OSError, StaleIncarnation):
            for one in worthless(storage, name, rank):
                guard()
                storage.remove(one.folder)
        raise


def worthless(storage: Storage, name: CheckpointName, rank: int) -> list[CheckpointName]:
    """`name`, which `rank` could not write, and older ones of this incarnation that it could not write either.

    The one before `name` may still be in work, in another thread, and does not count.
    """
    ours = sorted(one for one in folders(storage) if one.incarnation == name.incarnation and one <= name)
    before = [one for one in ours if one < name]
    return [
        one
        for one in [*before[:-1], *(one for one in ours if one == name)]
        if storage.size(one.part(rank)) is None and not has_manifest(storage, one)
    ]


def has_manifest(storage: Storage, name: CheckpointName) -> bool:
    """Whether it was ever committed. What can't even be looked at counts: it is not deleted for it."""
    try:
        return storage.size(name.manifest) is not None
    except OSError:
        return True


def folders(storage: Storage) -> list[CheckpointName]:
    """All folders that are named like a checkpoint, unjudged."""
    found = (CheckpointName.parse(text) for text in storage.list(names.CHECKPOINTS))
    return [name for name in found if name is not None]
