"""The daemon of any other node of a job: it tells the first one what happens, and does what that says."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from autoresume.node import link
from autoresume.node.node import Node, node_name
from autoresume.node.plan import MEETING_SECONDS, TURN_SECONDS, Plan
from autoresume.node.stop_signals import StopSignals

log = logging.getLogger("autoresume")


_PACE_SECONDS = 1.0
"""How often a node tells node 0 of its steps: an offer's answer tells them at once when it matters."""


class OtherNode:
    """The daemon of any other node."""

    def __init__(self, plan: Plan, signals: StopSignals, folder: Path) -> None:
        self.plan, self.signals = plan, signals
        assert self.plan.meeting is not None
        self.line = link.find_coordinator(
            self.plan.meeting,
            self.plan.node_rank,
            node_name(),
            MEETING_SECONDS,
            lambda: signals.stop_came,
        )
        self.node = Node(
            folder, self.plan.command, self.plan.local_ranks, self.plan.environment, self.line.send, _PACE_SECONDS
        )
        self.leave_at = float("inf")

    def run(self) -> int:
        try:
            while True:
                code = self._turn()
                if code is not None:
                    return code
        finally:
            self.line.close()
            self.node.close()

    def _turn(self) -> int | None:
        self.node.turn()
        link.wait([self.line.socket], TURN_SECONDS)
        found = self.signals.take()
        if found is not None:
            self.line.send({"kind": "signal", "name": found.name})
            self.leave_at = min(self.leave_at, time.monotonic() + 10 * self.plan.grace_seconds)
        self.signals.pass_on(self.node)
        for message in self.line.receive():
            if message.get("kind") == "end":
                return int(message["code"])
            self.node.handle(message)
        if self.line.broken is not None or time.monotonic() > self.leave_at:
            log.warning("the first node is gone (%s): what is sealed here is persisted", self.line.broken or "silent")
            self.node.handle({"kind": "drain"})
            return 1
        return None
