"""A snapshot whose copies are under way while training goes on.

Law: what was copied is judged once, before anybody who joins goes on to change its source; devices run behind the host,
and are judged only when they are through.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import torch

from autoresume.format.part import Chunk
from autoresume.snapshot.copies import Copying, WriteDetector
from autoresume.snapshot.devices import Transfer
from autoresume.snapshot.looks import Look, Looking
from autoresume.snapshot.sinks import Sealed


@dataclass(frozen=True)
class CopiesBegun:
    """Copies under way."""

    copying: Copying
    detector: WriteDetector
    now: Transfer
    late: Transfer
    """What an optimizer's step has to wait for on its device."""


@dataclass
class PendingSnapshot:
    """A snapshot whose copies are not joined yet."""

    sealed: Sealed
    looked_at: Sequence[Chunk]
    begun: CopiesBegun
    tensors: list[torch.Tensor]
    """Kept alive until they are copied."""
    looking: Looking | None = None
    look: Look | None = None
    """Once it is concluded."""
    whole: Future[bool] | None = None
    """Comes true when it was handed over; false when it was torn."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    torn: bool | None = None

    def join(self) -> bool:
        """Copy what is left in the host's memory; whether what was copied is what was there at the boundary."""
        self.begun.copying.join()
        with self.lock:
            if self.torn is None:
                self.torn = self.begun.detector.written()
        return not self.torn

    def finish(self) -> bool:
        """Wait for the devices, too."""
        self.begun.copying.join()
        self.begun.now.wait()
        self.begun.late.wait()
        return self.join() and not self.begun.late.written()

    def conclude_look(self) -> None:
        """When all is copied."""
        self.sealed, self.look = concluded(self.sealed, self.looking)


def concluded(sealed: Sealed, looking: Looking | None) -> tuple[Sealed, Look | None]:
    """The snapshot, with what was seen of the tensors that all ranks share."""
    if looking is None:
        return sealed, None
    look = looking.conclude(sealed.snapshot.image)
    return replace(sealed, snapshot=replace(sealed.snapshot, replicas=look.replicas)), look
