"""The signals that reach a daemon: those that stop a training, and those that are its user's.

Law: handlers set flags; whoever asks here does what they mean.
"""

from __future__ import annotations

import signal

from autoresume.handoff.signals import SignalTrap
from autoresume.node.node import Node


class StopSignals:
    """SIGTERM, SIGUSR1 and SIGUSR2 stop the training; SIGINT and SIGHUP go on to the ranks, whose user sent them."""

    def __init__(self) -> None:
        self._stop = SignalTrap([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
        self._user = SignalTrap([signal.SIGINT, signal.SIGHUP])

    def install(self) -> None:
        self._stop.install()
        self._user.install()

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        self._stop.restore()
        self._user.restore()

    def take(self) -> signal.Signals | None:
        """The stop signal that came, once."""
        found, self._stop.first = self._stop.first, None
        return found

    @property
    def stop_came(self) -> bool:
        """Whether one came that nobody has taken."""
        return self._stop.first is not None

    def pass_on(self, node: Node) -> None:
        """Give the ranks what their user sent."""
        if self._user.first is not None:
            node.forward(self._user.first)
            self._user.clear()

    @property
    def interrupted_by_user(self) -> bool:
        return self._user.count > 0
