"""The fence's protocol as a small machine, and a search through everything that it can do.

Law: every step of an actor is one access to shared memory, as in the docstring of
autoresume/handoff/fence.py; `explore` visits all interleavings. A write goes into its writer's store
buffer first and reaches memory at any later moment, in order (x86's memory model), so that what the
barrier is good for shows. Steps, `left` and `obeyed` only grow, so that reading a row of them finds
what one look at its first or at its last moment finds: a row is one step. Each rule of the protocol
can be left out, to see what it is there for.

    rank: for each boundary n:  step := n; read the fence; confirmed(n): act; proposed(n): read again
          then:                 left := yes; until it is shut: read the fence, and act on what is ahead
    daemon, for each order:     read all; fence := proposed(S); barrier; read all; confirm, or withdraw and retry
            when all have left: and obeyed: shut := yes
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NONE, PROPOSED, CONFIRMED = range(3)
SAVE, STOP = "SAVE", "STOP"


@dataclass(frozen=True)
class Rules:
    """What the protocol consists of. All of them together are sound; none can be left out."""

    barrier: bool = True
    """Between the daemon's proposal and its reading, every store that was made before is seen by all."""
    left_ranks_count: bool = True
    """The daemon looks at the steps of ranks that have left, too: they may have passed S while they trained."""
    one_at_a_time: bool = True
    """No new order before every rank has obeyed (and said so) the one before it."""
    obeyed_before_shut: bool = True
    """The fence is shut when all have left and have obeyed the last order, not before."""
    patience: bool = False
    """A rank that waits for a proposal to be confirmed may give up. This rule breaks it."""


class Rank(NamedTuple):
    at: str
    """publish, read, leave, shut, rest, acknowledge, done, stopped"""
    n: int
    """The last boundary that was published, or is about to be."""
    acted: frozenset[int] = frozenset()
    after: str = ""
    """What follows the acknowledgement."""


class Daemon(NamedTuple):
    at: str = "look"
    """look, propose, barrier, check, over"""
    order: int = 0
    core: int = 0
    target: int = 0
    confirmed: frozenset[int] = frozenset()


class World(NamedTuple):
    memory: tuple[Any, ...]
    buffers: tuple[tuple[tuple[int, Any], ...], ...]
    ranks: tuple[Rank, ...]
    daemon: Daemon


class Violation(Exception):
    """A broken promise, and the way there."""


class Model:
    """`lengths[r]` boundaries for rank r, and the daemon's orders. Words: the fence, then steps, left, obeyed, shut."""

    def __init__(self, lengths: Sequence[int], orders: Sequence[str], rules: Rules) -> None:
        self.lengths, self.orders, self.rules = tuple(lengths), tuple(orders), rules
        self.count = len(lengths)
        self.fence, self.step = 0, 1
        self.left, self.obeyed = 1 + self.count, 1 + 2 * self.count
        self.shut = 1 + 3 * self.count
        self.daemon = self.count

    def start(self) -> World:
        memory = ((NONE, 0), *[0] * self.count, *[False] * self.count, *[0] * self.count, False)
        return World(memory, ((),) * (self.count + 1), tuple(Rank("publish", 1) for _ in self.lengths), Daemon())

    # -- memory -----------------------------------------------------------------------------------

    def _read(self, world: World, actor: int, word: int) -> Any:
        for where, value in reversed(world.buffers[actor]):
            if where == word:
                return value
        return world.memory[word]

    def _row(self, world: World, actor: int, first: int) -> list[Any]:
        return [self._read(world, actor, first + rank) for rank in range(self.count)]

    def _write(self, world: World, actor: int, word: int, value: Any) -> World:
        return world._replace(buffers=_put(world.buffers, actor, (*world.buffers[actor], (word, value))))

    def _flush(self, world: World, actor: int, everything: bool = False) -> World:
        pending = world.buffers[actor]
        memory = world.memory
        for word, value in pending if everything else pending[:1]:
            memory = _put(memory, word, value)
        rest = () if everything else pending[1:]
        return world._replace(memory=memory, buffers=_put(world.buffers, actor, rest))

    # -- steps ------------------------------------------------------------------------------------

    def moves(self, world: World) -> Iterator[tuple[str, World]]:
        """Everything that can happen next."""
        for actor, pending in enumerate(world.buffers):
            if pending:
                yield f"{self._name(actor)}'s store is seen", self._flush(world, actor)
        for actor, rank in enumerate(world.ranks):
            yield from self._rank(world, actor, rank)
        yield from self._daemon(world, world.daemon)

    def _name(self, actor: int) -> str:
        return "daemon" if actor == self.daemon else f"rank {actor}"

    def _rank(self, world: World, me: int, rank: Rank) -> Iterator[tuple[str, World]]:
        def become(world: World, **changes: Any) -> World:
            return world._replace(ranks=_put(world.ranks, me, rank._replace(**changes)))

        who = f"rank {me}"
        if rank.at == "publish":
            yield f"{who} publishes {rank.n}", become(self._write(world, me, self.step + me, rank.n), at="read")
        elif rank.at == "read":
            state, target = self._read(world, me, self.fence)
            if target == rank.n and state == CONFIRMED:
                yield f"{who} acts at {target}", self._act(world, me, rank, target, self._next(me, rank))
            elif target != rank.n or state == NONE:
                yield f"{who} passes {rank.n}", become(world, **self._next(me, rank))
            elif self.rules.patience:
                yield f"{who} loses patience at {rank.n}", become(world, **self._next(me, rank))
        elif rank.at == "acknowledge":
            said = self._write(world, me, self.obeyed + me, max(rank.acted))
            yield f"{who} says that it obeyed", become(said, at=rank.after)
        elif rank.at == "leave":
            yield f"{who} leaves", become(self._write(world, me, self.left + me, True), at="shut")
        elif rank.at == "shut":
            if self._read(world, me, self.shut):
                yield f"{who} sees that it is shut, and ends", become(world, at="done")
            else:
                yield f"{who} sees others train", become(world, at="rest")
        elif rank.at == "rest":
            state, target = self._read(world, me, self.fence)
            if target > rank.n and target not in rank.acted and state == CONFIRMED:
                after = {"at": "shut", "n": rank.n}
                yield f"{who}, at rest, acts at {target}", self._act(world, me, rank, target, after)
            else:
                yield f"{who} rests", become(world, at="shut")

    def _next(self, me: int, rank: Rank) -> dict[str, Any]:
        if rank.n < self.lengths[me]:
            return {"at": "publish", "n": rank.n + 1}
        return {"at": "leave", "n": rank.n}

    def _act(self, world: World, me: int, rank: Rank, target: int, after: dict[str, Any]) -> World:
        # Which order it is stands in the fence beside the step; here it follows from the number of confirmed ones.
        order = self.orders[sorted(world.daemon.confirmed).index(target)] if target in world.daemon.confirmed else STOP
        acted = rank.acted | {target}
        if order == STOP:
            changed = rank._replace(acted=acted, at="acknowledge", after="stopped")
        else:
            changed = rank._replace(acted=acted, at="acknowledge", n=after["n"], after=after["at"])
        return world._replace(ranks=_put(world.ranks, me, changed))

    def _daemon(self, world: World, daemon: Daemon) -> Iterator[tuple[str, World]]:
        def become(world: World, **changes: Any) -> World:
            return world._replace(daemon=daemon._replace(**changes))

        if daemon.at == "over":
            return
        steps, left = self._row(world, self.daemon, self.step), self._row(world, self.daemon, self.left)
        known = [step for step, gone in zip(steps, left) if self.rules.left_ranks_count or not gone]
        if daemon.at == "look":
            last = max(daemon.confirmed, default=0)
            settled = min(self._row(world, self.daemon, self.obeyed)) >= last
            if all(left):
                if settled or not self.rules.obeyed_before_shut:
                    yield "daemon shuts the fence", become(self._write(world, self.daemon, self.shut, True), at="over")
            elif daemon.order < len(self.orders) and 0 not in known and (settled or not self.rules.one_at_a_time):
                yield "daemon looks", become(world, at="propose", target=max(known) + 1)
        elif daemon.at == "propose":
            proposed = self._write(world, self.daemon, self.fence, (PROPOSED, daemon.target))
            follows = "barrier" if self.rules.barrier else "check"
            yield f"daemon proposes {daemon.target}", become(proposed, at=follows, core=0)
        elif daemon.at == "barrier":
            # First the daemon's own core, then the others', one after the other.
            actor = (self.daemon + daemon.core) % (self.count + 1)
            done = self._flush(world, actor, everything=True)
            changes = {"at": "check"} if daemon.core == self.count else {"core": daemon.core + 1}
            yield f"barrier on the core of {self._name(actor)}", become(done, **changes)
        elif any(step >= daemon.target for step in known) or all(left):
            # Reading and writing what follows from it are two accesses, but nobody else writes the fence.
            withdrawn = self._write(world, self.daemon, self.fence, (NONE, 0))
            yield f"daemon withdraws {daemon.target}", become(withdrawn, at="look", target=0)
        else:
            confirmed = self._write(world, self.daemon, self.fence, (CONFIRMED, daemon.target))
            so_far = daemon.confirmed | {daemon.target}
            yield (
                f"daemon confirms {daemon.target}",
                become(confirmed, at="look", order=daemon.order + 1, confirmed=so_far, target=0),
            )

    # -- promises ---------------------------------------------------------------------------------

    def broken(self, world: World) -> str | None:
        """The promise that `world` breaks, or None."""
        acted = frozenset().union(*(rank.acted for rank in world.ranks))
        strangers = acted - world.daemon.confirmed
        if strangers:
            return f"a rank acts at {min(strangers)}, which was never confirmed"
        for target in sorted(acted):
            for me, rank in enumerate(world.ranks):
                if target not in rank.acted and self._is_past(rank, target):
                    return f"rank {me} is past {target}, where another one acts"
        return None

    def _is_past(self, rank: Rank, target: int) -> bool:
        if rank.at == "done":
            return True
        return target <= (rank.n - 1 if rank.at in ("publish", "read") else rank.n)

    def at_end(self, world: World) -> bool:
        return all(rank.at in ("done", "stopped") for rank in world.ranks)


def _put(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def explore(model: Model, most: int = 2_000_000) -> int:
    """Visit every world that can be reached; how many there are.

    Raises Violation, with a shortest way there, for a broken promise, and for a world from which the ranks can
    never come to an end, whatever happens.
    """
    start = model.start()
    came: dict[World, tuple[World, str] | None] = {start: None}
    back: dict[World, list[World]] = {start: []}
    ends: list[World] = []
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        if model.at_end(world):
            ends.append(world)
        for what, following in model.moves(world):
            if following not in came:
                came[following], back[following] = (world, what), []
                problem = model.broken(following)
                if problem is not None:
                    raise Violation(_tell(came, following, problem))
                waiting.append(following)
            back[following].append(world)
        if len(came) > most:
            raise MemoryError(f"more than {most} worlds")
    hopeful = set(ends)
    while ends:
        for before in back[ends.pop()]:
            if before not in hopeful:
                hopeful.add(before)
                ends.append(before)
    for world in came:
        if world not in hopeful:
            raise Violation(_tell(came, world, "the ranks can't come to an end any more"))
    return len(came)


def _tell(came: dict[World, tuple[World, str] | None], world: World, problem: str) -> str:
    lines = []
    link = came[world]
    while link is not None:
        world, what = link
        lines.append(what)
        link = came[world]
    return "\n".join([problem, *reversed(lines)])
