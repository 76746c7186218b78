"""What the daemon asks of the batch system, whichever that is.

Law: a protocol and the answer where there is none. Nothing here blocks the daemon's loop but `why_stopped` and
`requeue`, which come when the ranks are gone; both are bounded in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from autoresume.errors import EXIT_INTERRUPTED
from autoresume.node.causes import Cause


@dataclass(frozen=True)
class Notice:
    """What the batch system says of the job."""

    end: float | None = None
    """The monotonic moment at which it ends the job, as far as that is known."""
    cause: Cause | None = None
    """Why the job is being stopped, if it is."""
    requeued: bool = False
    """It requeues the job by itself."""
    cancelled: bool = False
    over: bool = False
    """The job's processes are being ended: nothing can be started in it any more."""


class Cluster(Protocol):
    @property
    def can_requeue(self) -> bool:
        """Whether `requeue` has a chance."""

    def news(self) -> Notice | None:
        """What is known now, if that has changed. Returns at once."""

    def hurry(self) -> None:
        """A signal came: look now, and more often."""

    def why_stopped(self, why: str) -> Notice:
        """After a stop because of `why`: what the batch system says of it. Waits some seconds for an answer at most."""

    def requeue(self, why: str, exclude: tuple[str, ...]) -> int:
        """Have the job run again, without the nodes in `exclude`; the exit code to leave with."""

    def ended(self, cause: Cause, why: str) -> None:
        """Nothing follows."""


class NoCluster:
    """Whoever started the daemon decides by its exit code."""

    can_requeue = False

    def news(self) -> Notice | None:
        return None

    def hurry(self) -> None:
        """Nobody is to be asked."""

    def why_stopped(self, why: str) -> Notice:
        return Notice()

    def requeue(self, why: str, exclude: tuple[str, ...]) -> int:
        return EXIT_INTERRUPTED

    def ended(self, cause: Cause, why: str) -> None:
        """Nobody is to be told."""
