"""Which tensors are stored once for all ranks, a share by each: those that all ranks were last seen to hold alike.

Law: nothing is split over the ranks before all of it was compared, and what is, is looked at again at every save, while
training goes on; at a stop, all of it is compared before it is stored. What each rank found is in its part, so that a
mixture is not committed where a look could see it. Ranks hear of a difference with the next save, and each stores its
own of what has parted from then on. They need not hear of it at the same save: shares that don't go together are not
committed either.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoresume.format.digest import digest
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk
from autoresume.ranks.agreement import Ranks
from autoresume.ranks.comparison import Answer, Comparison
from autoresume.snapshot.copies import copy_threads
from autoresume.snapshot.looks import ALL, MOST_SLICES, Look, Watch, fingerprints, word_of
from autoresume.state.capture import Leaf

log = logging.getLogger("autoresume")

_LEAST_WAIT_SECONDS = 5.0
_NAMED = 4


@dataclass(frozen=True)
class _Asked:
    name: CheckpointName
    look: Look


class Replication:
    """Of one rank. `changed`: other tensors are to be split than at the last save."""

    def __init__(self, ranks: Ranks) -> None:
        self.changed = False
        self.mixed: set[str] = set()
        """Names of snapshots that have shares of what had parted."""
        self._ranks = ranks
        self._comparison = Comparison(ranks.background)
        self._trusted: set[str] | None = None
        """Keys; None before the first save."""
        self._apart: set[str] = set()
        self._asked: dict[str, _Asked] = {}
        self._saved: deque[tuple[int, CheckpointName]] = deque(maxlen=2 * MOST_SLICES)
        """(turn, name) of what was looked at in part, since all was looked at last."""
        self._turn: int | None = None

    def sorted_out(self, leaves: Sequence[Leaf]) -> list[Leaf]:
        """The leaves, with those split over the ranks that may be."""
        trusted = self._trusted
        return [
            _as_own(leaf) if leaf.split and trusted is not None and leaf.key not in trusted else leaf for leaf in leaves
        ]

    def unproven(self, leaves: Sequence[Leaf], chunks: Sequence[Chunk]) -> list[Chunk]:
        """Of what should be the same on all ranks, and was not compared yet: it came after the first save."""
        keys = {leaf.key for leaf in leaves if leaf.split} - (self._trusted or set()) - self._apart
        return [chunk for chunk in chunks if chunk.key in keys]

    # -- all of it, now -----------------------------------------------------------------------------

    def compare_first(self, leaves: Sequence[Leaf]) -> dict[str, int]:
        """At the first save, where all ranks wait for each other. The fingerprints of this rank's tensors."""
        found = self._fingerprints(leaves)
        everywhere = self._ranks.gather(digest(repr(sorted(found.items())).encode()))
        if len(set(everywhere)) == 1:
            self._trusted = set(found)
            return found
        tables = self._ranks.gather(found)
        self._trusted = {key for key, value in found.items() if all(table.get(key) == value for table in tables)}
        self._apart = {key for table in tables for key in table} - self._trusted
        self._tell_unlike(self._apart)
        return found

    def compare_all(self, leaves: Sequence[Leaf], name: CheckpointName) -> dict[str, int]:
        """At a stop or the end, for as long as it may take: a rank that does not answer in time is not waited for."""
        began = time.monotonic()
        found = self._fingerprints(leaves)
        # What came into being since the last save is proven here, or not.
        look = Look.of(Watch.of([leaf for leaf in leaves if leaf.key in found], []), ALL, found)
        self._asked[f"{name} all"] = _Asked(name, look)
        patience = max(_LEAST_WAIT_SECONDS, 4 * (time.monotonic() - began))
        for answer in self._comparison.settle(f"{name} all", look.numbers, patience):
            self._take(answer)
        return found

    def _fingerprints(self, leaves: Sequence[Leaf]) -> dict[str, int]:
        return fingerprints([leaf for leaf in leaves if leaf.split and leaf.key not in self._apart], copy_threads())

    # -- a part of it, at each save -------------------------------------------------------------------

    def next_turn(self, name: CheckpointName) -> int:
        """Which bytes all ranks look at now. Lives that are cut short don't all begin with the same."""
        self._turn = 37 * name.incarnation if self._turn is None else self._turn + 1
        return self._turn

    def note_saved(self, name: CheckpointName, turn: int) -> None:
        """With -1 all was looked at: whatever parted did so later."""
        if turn == ALL:
            self._saved.clear()
        else:
            self._saved.append((turn, name))

    def ask(self, name: CheckpointName, look: Look, whole: bool) -> None:
        """Once a look is there, or the snapshot was given up."""
        if self._comparison.ask(str(name), look.numbers, whole):
            self._asked[str(name)] = _Asked(name, look)

    def hear(self) -> None:
        """At the beginning of a save: what has become known since the last one."""
        for answer in self._comparison.answers():
            self._take(answer)

    def _take(self, answer: Answer) -> None:
        asked = self._asked.pop(answer.name, None)
        if asked is None or self._trusted is None:
            return
        looked, unproven = answer.differs.reshape(2, -1)
        watch = asked.look.watch
        seen = {one.key for one in watch.watched}
        parted = {key for key in seen - self._apart if looked[word_of(key)]}
        new = {chunk.key for chunk in watch.unproven} - self._apart
        differ = {key for key in new if unproven[word_of(key)]}
        trusted = self._trusted | (new - differ) | (seen - self._apart if asked.look.turn == ALL else set())
        trusted -= parted | differ
        self._apart |= parted | differ
        self.changed |= trusted != self._trusted
        self._trusted = trusted
        self._tell_unlike(differ)
        if parted:
            self.mixed.add(str(asked.name))
        if parted and self._ranks.rank == 0:
            self._tell_parted(parted, asked)

    def _tell_unlike(self, keys: set[str]) -> None:
        if keys and self._ranks.rank == 0:
            log.warning(
                "%d tensors that should be equal on all ranks differ, e.g. %s: every rank stores its own",
                len(keys),
                min(keys),
            )

    def _tell_parted(self, keys: set[str], asked: _Asked) -> None:
        slices, turn = asked.look.watch.slices, asked.look.turn
        since = turn - slices if turn != ALL else (self._turn or 0) - slices + 1
        suspects = [name for at, name in self._saved if at > since and name != asked.name] if slices > 1 else []
        log.warning(
            "step %d: %d tensors that DDP, or a promise, should keep equal on all ranks have parted, e.g. %s: from now "
            "on every rank stores its own of them.%s%s If they should be equal, look for what changes them on one rank "
            "alone (no_sync, max_norm, a step that one rank skips).",
            asked.name.step,
            len(keys),
            ", ".join(sorted(keys)[:_NAMED]),
            "" if turn == ALL else f" Checkpoint {asked.name} would be a mixture, and is not committed.",
            _suspected(suspects),
        )


def _suspected(names: Sequence[CheckpointName]) -> str:
    if not names:
        return ""
    listed = f"checkpoint {names[0]} was" if len(names) == 1 else f"checkpoints {names[0]} to {names[-1]} were"
    return (
        f" Other parts of these tensors were looked at when {listed} saved: where they had parted by then, the ranks' "
        "states are mixed there. Don't go on from them."
    )


def _as_own(leaf: Leaf) -> Leaf:
    return replace(leaf, split=False, shared=False)
