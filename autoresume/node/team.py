"""All nodes of a job as the coordinator sees them, and one step for the ranks of all of them.

Law: an order is fixed in two phases. The coordinator offers a step ahead of every rank to each node; a node
accepts only if all its ranks are still to come there, and holds them at that step until it hears more
(handoff/fence.py). Have all accepted, it is confirmed on all; has one refused, withdrawn on all. A node that
is lost meanwhile makes the offer void: whoever holds its ranks at that step is then told to kill them. No
order is offered before the last one was obeyed everywhere, and none after the fence was shut.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from autoresume.handoff.fence import Order

Message = dict[str, Any]
SILENT_SECONDS = 30.0
"""A node that says nothing for so long is lost."""


@dataclass
class Member:
    """A node, and what it last said."""

    number: int
    send: Callable[[Message], None]
    address: str = ""
    name: str | None = None
    """As the batch system calls it."""
    state: Message = field(default_factory=dict)
    heard: float = field(default_factory=time.monotonic)
    greeted: Message | None = None
    report: Message | None = None
    over: bool = False
    """All its ranks of this life are gone."""
    exited: int | None = None
    """Its launcher's exit code."""
    drained: bool = False


@dataclass
class _Offer:
    target: int
    order: Order
    missing: set[int]
    refused: bool = False
    left: bool = True


class Team:
    """The nodes of one round."""

    def __init__(self, members: dict[int, Member]) -> None:
        self.members = members
        self._offer: _Offer | None = None
        self._shut = False

    def tell_all(self, message: Message) -> None:
        for member in list(self.members.values()):
            member.send(message)

    def lose(self, number: int) -> None:
        """That node is gone; what was offered to it is void."""
        if self.members.pop(number, None) is not None and self._offer is not None:
            self._offer.refused = True

    # -- what holds for all -----------------------------------------------------------------------

    def every(self, word: str) -> bool:
        return bool(self.members) and all(member.state.get(word) for member in self.members.values())

    @property
    def busy(self) -> bool:
        return any(member.state.get("busy") for member in self.members.values())

    @property
    def most(self) -> int:
        """The furthest step that any rank has reached; -1 before the first boundary."""
        return max((int(member.state.get("most", -1)) for member in self.members.values()), default=-1)

    @property
    def cost_seconds(self) -> float | None:
        costs = [member.state["cost"] for member in self.members.values() if member.state.get("cost") is not None]
        return max(costs, default=None)

    # -- orders -----------------------------------------------------------------------------------

    def renew(self) -> None:
        """New ranks: nothing of the old ones' orders is left."""
        self._offer, self._shut = None, False
        for member in self.members.values():
            member.greeted, member.report, member.over, member.state = None, None, False, {}

    def propose(self, ahead: int, order: Order) -> None:
        """Offer `order` at a step `ahead` of every rank. `answered` gives the outcome."""
        self._offer = _Offer(self.most + ahead, order, set(self.members))
        self.tell_all({"kind": "offer", "target": self._offer.target, "order": int(order)})

    def answer(self, number: int, message: Message) -> None:
        member, offer = self.members.get(number), self._offer
        if member is not None:
            member.state["most"] = max(int(message.get("most", -1)), int(member.state.get("most", -1)))
        if offer is not None and message["target"] == offer.target:
            offer.missing.discard(number)
            offer.refused = offer.refused or not message["accepted"]
            offer.left = offer.left and bool(message["left"])

    def answered(self) -> tuple[bool, int | None]:
        """(whether an offer has come to its end, the step that was confirmed, or None if it was withdrawn)"""
        offer = self._offer
        if offer is None or offer.missing & set(self.members):
            return False, None
        self._offer = None
        if offer.refused or offer.left:
            self.tell_all({"kind": "withdraw"})
            return True, None
        self.tell_all({"kind": "confirm"})
        return True, offer.target

    def shut_if_all_left(self) -> None:
        """Let the ranks end once all have left their loops and owe no obedience."""
        if not self._shut and self._offer is None and self.every("left") and self.every("settled"):
            self._shut = True
            self.tell_all({"kind": "shut"})
