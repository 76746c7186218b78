"""Several nodes as a small machine: the coordinator, its lines to the nodes, and each node's fence.

Law: what happens inside of a node is one step here, since tests/handoff/model.py has searched through that. A
line keeps the order of its messages and delays each as long as it likes; what the coordinator knows of a node is
the state that it was told last, however old. The names are those of autoresume/node/team.py. Each rule can be
left out, to see what it is there for. `explore` of tests/handoff/model.py visits all worlds.

    rank         each boundary n: step := n; confirmed(n): act; proposed(n): wait; then rest until closed, obeying
                 what is ahead; the order STOP ends it
    node         offer(S): accepts if all its ranks are still to come there and owe nothing; confirm; withdraw; shut
    coordinator  offer S ahead of all to each node; confirm if all have accepted, else withdraw, and try further
                 ahead; shut when all have left and obeyed
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.handoff.model import CONFIRMED, NONE, PROPOSED, STOP


@dataclass(frozen=True)
class Rules:
    """What the protocol consists of. All of them together are sound; none can be left out."""

    all_accept: bool = True
    """An order is confirmed when all nodes have accepted it, not the first."""
    one_at_a_time: bool = True
    """A node refuses a new order before its ranks have obeyed the one before."""
    last_look: bool = True
    """A resting rank looks whether it is shut first, and at the order after that, before it ends."""
    in_flight: int = 1 << 20
    """How many states of a node may be on their way at once; no rule, but a bound for the search."""


class Rank(NamedTuple):
    at: str = "train"
    """train, wait, rest, look, done, stopped"""
    n: int = 0
    acted: frozenset[int] = frozenset()


class Node(NamedTuple):
    ranks: tuple[Rank, ...]
    fence: tuple[int, int, str] = (NONE, 0, "")
    closed: bool = False
    told: Any = None
    """The state that it told last."""


class Offer(NamedTuple):
    target: int
    order: str
    missing: frozenset[int]
    refused: bool = False
    left: bool = True


class Coordinator(NamedTuple):
    known: tuple[Any, ...]
    """(ready, most, left, settled) of each node, as it told it last."""
    order: int = 0
    ahead: int = 1
    offer: Offer | None = None
    shut: bool = False
    confirmed: frozenset[int] = frozenset()


class World(NamedTuple):
    nodes: tuple[Node, ...]
    coordinator: Coordinator
    down: tuple[tuple[Any, ...], ...]
    up: tuple[tuple[Any, ...], ...]


class Model:
    """`lengths[node][rank]` boundaries, and the orders that are wanted, one after the other."""

    def __init__(self, lengths: Sequence[Sequence[int]], orders: Sequence[str], rules: Rules) -> None:
        self.lengths, self.orders, self.rules = lengths, tuple(orders), rules
        self.count = len(lengths)

    def start(self) -> World:
        nodes = tuple(Node(tuple(Rank() for _ in ranks)) for ranks in self.lengths)
        empty = ((),) * self.count
        return World(nodes, Coordinator((None,) * self.count), empty, empty)

    def moves(self, world: World) -> Iterator[tuple[str, World]]:
        for number, node in enumerate(world.nodes):
            for index, rank in enumerate(node.ranks):
                for what, changed, fence_of in self._rank(number, index, rank, node):
                    ranks = _put(node.ranks, index, changed)
                    yield f"rank {number}.{index} {what}", self._node(world, number, fence_of._replace(ranks=ranks))
            yield from self._node_moves(world, number, node)
        yield from self._coordinator(world, world.coordinator)

    # -- ranks ------------------------------------------------------------------------------------

    def _rank(self, number: int, index: int, rank: Rank, node: Node) -> Iterator[tuple[str, Rank, Node]]:
        state, target, order = node.fence
        if rank.at == "train":
            if rank.n == self.lengths[number][index]:
                yield "leaves its loop", rank._replace(at="rest"), node
                return
            there = rank._replace(n=rank.n + 1)
            if target == there.n and state == PROPOSED:
                yield f"waits at {there.n}", there._replace(at="wait"), node
            elif target == there.n and state == CONFIRMED:
                yield f"acts at {there.n}", _act(there, target, order), node
            else:
                yield f"passes {there.n}", there, node
        elif rank.at == "wait":
            if state == CONFIRMED and target == rank.n:
                yield f"acts at {rank.n}", _act(rank._replace(at="train"), target, order), node
            elif state != PROPOSED or target != rank.n:
                yield f"goes on at {rank.n}", rank._replace(at="train"), node
        elif rank.at in ("rest", "look"):
            obeys = state == CONFIRMED and target > rank.n and target not in rank.acted
            yield from self._rest(rank, node, obeys)

    def _rest(self, rank: Rank, node: Node, obeys: bool) -> Iterator[tuple[str, Rank, Node]]:
        """Two looks, at whether it is shut and at the order, between which anything may happen."""
        _, target, order = node.fence
        if rank.at == "rest" and obeys and (not node.closed or not self.rules.last_look):
            yield f"acts at {target}, at rest", _act(rank, target, order), node
        elif rank.at == "rest" and self.rules.last_look:
            if node.closed:
                yield "sees that it is shut", rank._replace(at="look"), node
        elif rank.at == "rest":
            yield "sees no order", rank._replace(at="look"), node
        elif self.rules.last_look:
            if obeys:
                yield f"acts at {target}, at its last look", _act(rank._replace(at="rest"), target, order), node
            else:
                yield "ends", rank._replace(at="done"), node
        elif node.closed:
            yield "ends", rank._replace(at="done"), node
        else:
            yield "looks again", rank._replace(at="rest"), node

    # -- nodes ------------------------------------------------------------------------------------

    def _node(self, world: World, number: int, node: Node) -> World:
        return world._replace(nodes=_put(world.nodes, number, node))

    def _node_moves(self, world: World, number: int, node: Node) -> Iterator[tuple[str, World]]:
        state = _state(node)
        if state != node.told and sum(message[0] == "state" for message in world.up[number]) < self.rules.in_flight:
            told = self._node(world, number, node._replace(told=state))
            yield f"node {number} tells its state", told._replace(up=_push(told.up, number, ("state", state)))
        if not world.down[number]:
            return
        message, rest = world.down[number][0], world._replace(down=_pop(world.down, number))
        kind = message[0]
        what = f"node {number} hears {' '.join(map(str, message))}"
        standing, target, order = node.fence
        if kind == "offer":
            accepted = self._accepts(node, message[1])
            left = all(rank.at not in ("train", "wait") for rank in node.ranks)
            if accepted:
                node = node._replace(fence=(PROPOSED, message[1], message[2]))
            rest = rest._replace(up=_push(rest.up, number, ("answer", message[1], accepted, left)))
            yield f"{what}, and {'accepts' if accepted else 'refuses'}", self._node(rest, number, node)
        elif kind == "confirm":
            fence = (CONFIRMED, target, order) if standing == PROPOSED else node.fence
            yield what, self._node(rest, number, node._replace(fence=fence))
        elif kind == "withdraw":
            fence = (NONE, 0, "") if standing == PROPOSED else node.fence
            yield what, self._node(rest, number, node._replace(fence=fence))
        else:
            yield what, self._node(rest, number, node._replace(closed=True))

    def _accepts(self, node: Node, target: int) -> bool:
        if any(rank.n == 0 for rank in node.ranks) or node.closed:
            return False
        if not _settled(node) and self.rules.one_at_a_time:
            return False
        return all(rank.n < target for rank in node.ranks)

    # -- the coordinator --------------------------------------------------------------------------

    def _coordinator(self, world: World, me: Coordinator) -> Iterator[tuple[str, World]]:
        for number in range(self.count):
            if world.up[number]:
                message, rest = world.up[number][0], world._replace(up=_pop(world.up, number))
                yield f"the coordinator hears node {number}: {message[0]}", rest._replace(coordinator=self._hear(me, number, message))  # fmt: skip
        offer = me.offer
        if offer is not None:
            yield from self._answered(world, me, offer)
            return
        # What is offered after the word to shut finds all fences closed: those worlds would teach nothing.
        wanted = me.order < len(self.orders) and not me.shut
        if wanted and all(known and known[0] for known in me.known):
            target = max(known[1] for known in me.known) + me.ahead
            order = self.orders[me.order]
            asked = me._replace(offer=Offer(target, order, frozenset(range(self.count))))
            yield f"the coordinator offers {order} at {target}", self._tell(world, asked, ("offer", target, order))
        if not me.shut and all(known and known[2] and known[3] for known in me.known):
            yield "the coordinator shuts", self._tell(world, me._replace(shut=True), ("shut",))

    def _hear(self, me: Coordinator, number: int, message: Any) -> Coordinator:
        if message[0] == "state":
            return me._replace(known=_put(me.known, number, message[1]))
        _, target, accepted, left = message
        offer = me.offer
        if offer is None or target != offer.target:
            return me
        return me._replace(
            offer=offer._replace(
                missing=offer.missing - {number},
                refused=offer.refused or not accepted,
                left=offer.left and left,
            )
        )

    def _answered(self, world: World, me: Coordinator, offer: Offer) -> Iterator[tuple[str, World]]:
        early = not self.rules.all_accept and len(offer.missing) < self.count and not offer.refused
        if offer.missing and not early:
            return
        over = me._replace(offer=None)
        if offer.refused or (offer.left and not early):
            further = over._replace(ahead=min(2, me.ahead * 2))
            yield "the coordinator withdraws", self._tell(world, further, ("withdraw",))
            return
        done = over._replace(order=me.order + 1, ahead=1, confirmed=me.confirmed | {offer.target})
        yield f"the coordinator confirms {offer.target}", self._tell(world, done, ("confirm",))

    def _tell(self, world: World, me: Coordinator, message: Any) -> World:
        return world._replace(coordinator=me, down=tuple((*line, message) for line in world.down))

    # -- promises ---------------------------------------------------------------------------------

    def broken(self, world: World) -> str | None:
        """The promise that `world` breaks, or None."""
        ranks = {f"{number}.{index}": rank for number, node in enumerate(world.nodes) for index, rank in enumerate(node.ranks)}  # fmt: skip
        acted = frozenset().union(*(rank.acted for rank in ranks.values()))
        strangers = acted - world.coordinator.confirmed
        if strangers:
            return f"a rank acts at {min(strangers)}, which was never confirmed"
        for target in sorted(acted):
            for name, rank in ranks.items():
                if target not in rank.acted and _is_past(rank, target):
                    return f"rank {name} is past {target}, where another one acts"
        return None

    def at_end(self, world: World) -> bool:
        return all(rank.at in ("done", "stopped") for node in world.nodes for rank in node.ranks)


def _act(rank: Rank, target: int, order: str) -> Rank:
    return rank._replace(at="stopped" if order == STOP else rank.at, acted=rank.acted | {target})


def _is_past(rank: Rank, target: int) -> bool:
    return rank.at in ("done", "stopped") or (rank.n >= target and not (rank.at == "wait" and rank.n == target))


def _settled(node: Node) -> bool:
    state, target, _ = node.fence
    return state != CONFIRMED or all(max(rank.acted, default=0) >= target for rank in node.ranks)


def _state(node: Node) -> tuple[bool, int, bool, bool]:
    """(ready, most, left, settled)"""
    settled = _settled(node)
    left = all(rank.at not in ("train", "wait") for rank in node.ranks)
    return all(rank.n > 0 for rank in node.ranks) and settled, max(rank.n for rank in node.ranks), left, settled


def _put(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _push(lines: tuple[Any, ...], number: int, message: Any) -> tuple[Any, ...]:
    return _put(lines, number, (*lines[number], message))


def _pop(lines: tuple[Any, ...], number: int) -> tuple[Any, ...]:
    return _put(lines, number, lines[number][1:])
