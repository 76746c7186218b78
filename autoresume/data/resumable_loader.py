"""What `Run` needs of a loader, whoever made it.

Law: the position is what the loop consumed, never what workers fetched ahead. A pass that came to its
end moves the position to the next epoch only when the next pass begins: a checkpoint in between belongs
to the epoch that was trained. After a resume such a pass gives nothing where the script comes by it again,
and the next one begins where the script has gone on to another turn of its loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from autoresume.data.counters import LoopCount


class ResumableLoader(Protocol):
    """A pass goes from the position to the end of the epoch."""

    epoch: int
    over: bool
    """The last pass has come to its end."""
    count: LoopCount

    @property
    def gave_all(self) -> bool:
        """The pass has given its last batch, as far as that is known without asking for one more."""

    def reseed(self, seed: int) -> None: ...

    def start_next_epoch_if_over(self) -> None:
        """Before a pass of `run.batches`: go to the next epoch if the last pass came to its end."""

    def iterate(self) -> Iterator[Any]:
        """The pass of `run.batches`, from the position."""

    def commit(self) -> int:
        """A step boundary: what was handed out is consumed. Returns the samples consumed since the last one."""

    def problems(self) -> list[str]:
        """Just after a step boundary was committed: what is to be told of a loop over the loader itself."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def follow(self, state: dict[str, Any]) -> None:
        """Take the place of a loader whose state this is: the next pass is the one after its last."""

    def shut_down_workers(self) -> None:
        """Ask the workers to end. Nothing is iterated afterwards."""


class Fetching(Protocol):
    """What is to be known of the script's fetching, for its random numbers' sake."""

    def going_on(self) -> None:
        """Data are begun to be iterated where an earlier life was in them."""

    def fetching(self) -> None:
        """A batch is about to be fetched, which is not the first of its pass."""


class PassTurn:
    """In which turn of the script's loops a loader's last pass was begun; `turn` tells the current one."""

    def __init__(self, turn: Callable[[], str]) -> None:
        self._turn = turn
        self.begun = ""
        self.was_over = False
        """A pass that was restored had come to its end, and none was begun since."""

    def begin(self) -> None:
        self.begun, self.was_over = self._turn(), False

    def load_state(self, state: dict[str, Any]) -> None:
        self.begun, self.was_over = str(state["turn"]), bool(state["over"])

    def left(self) -> bool:
        """That was in a turn that the script is not in any more."""
        return self.was_over and bool(self.begun) and self.begun != self._turn()
