"""Snapshots that stay in the node's memory after they were persisted, for the ranks that come after a death.

Law: a record names an arena whose content is, byte for byte, the image of a rank's tensor files that are on disk. It
is written by the persister once they are durable, and removed by the saver before it writes into that arena again; so
an arena that was being overwritten when its rank died has none. Whoever reads an arena verifies it as a file.
"""

from __future__ import annotations

from pathlib import Path

from autoresume.handoff.mailbox import Mailbox

PREFIX = "kept-"


def note_kept(mailbox: Mailbox, arena: str, checkpoint: str, rank: int, size: int) -> None:
    """Record that the first `size` bytes of an arena are the image of `rank` in a checkpoint."""
    mailbox.send(PREFIX + arena, {"arena": arena, "checkpoint": checkpoint, "rank": rank, "bytes": size})


def forget(mailbox: Mailbox, arena: str) -> None:
    """Before it is written again."""
    mailbox.remove(PREFIX + arena)


def kept_arenas(mailbox: Mailbox) -> set[str]:
    """The file names of all that are kept."""
    return {name.removeprefix(PREFIX) for name in mailbox.names(PREFIX)}


def kept_images(mailbox: Mailbox, checkpoint: str) -> dict[tuple[int, int], Path]:
    """Where the images of a checkpoint lie in memory, by their rank and size."""
    found = {}
    for name in mailbox.names(PREFIX):
        record = mailbox.receive(name)
        if record is not None and record["checkpoint"] == checkpoint:
            found[int(record["rank"]), int(record["bytes"])] = mailbox.folder / Path(record["arena"]).name
    return found


def drop_all(mailbox: Mailbox) -> None:
    """Give the memory of all that are kept back: everybody has read what he needs."""
    for arena in kept_arenas(mailbox):
        forget(mailbox, arena)
        (mailbox.folder / arena).unlink(missing_ok=True)
