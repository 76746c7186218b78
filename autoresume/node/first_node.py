"""The daemon of the job's first node: it waits for the others, and carries out what the coordinator decides.

Law: one loop; what signals, ranks, other nodes and the cluster say goes to the coordinator, and what it says is done.
A round is one start of the ranks on all nodes that are needed; after it a verdict says what follows.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path

from autoresume.errors import EXIT_FINISHED, EXIT_HOPELESS, EXIT_INTERRUPTED, EXIT_PORT_TAKEN, EXIT_STOPPED, UsageError
from autoresume.node import link, verdicts
from autoresume.node.causes import Cause
from autoresume.node.cluster import Cluster, Notice
from autoresume.node.conclusion import LifeEnd, Means, conclude_life
from autoresume.node.coordinator import Coordinator, RoundEnded
from autoresume.node.link import Listener
from autoresume.node.node import Message, Node, node_name
from autoresume.node.plan import MEETING_SECONDS, TURN_SECONDS, Plan
from autoresume.node.stop_signals import StopSignals
from autoresume.node.team import Member, Team
from autoresume.node.verdicts import Verdict

log = logging.getLogger("autoresume")


_MOST_PORTS = 3
"""So many rounds in a row may find their port taken."""


class FirstNode:
    """The daemon of node 0."""

    def __init__(self, plan: Plan, cluster: Cluster, signals: StopSignals, folder: Path) -> None:
        self.plan, self.cluster, self.signals = plan, cluster, signals
        self.inbox: deque[tuple[int, Message]] = deque()
        self.node = Node(
            folder,
            self.plan.command,
            self.plan.local_ranks,
            self.plan.environment,
            lambda message: self.inbox.append((0, message)),
        )
        self.members = {0: Member(0, self.node.handle, "127.0.0.1", node_name())}
        self.listener: Listener | None = None
        self.coordinator = Coordinator(Team({}), self.plan.grace_seconds)
        self.notice = Notice()
        self.round = 0
        self.bad: frozenset[str] = frozenset()
        """Nodes that the next round does without, if it can."""

    def run(self) -> int:
        code = EXIT_HOPELESS
        try:
            if self.plan.nodes > 1:
                assert self.plan.meeting is not None
                self.listener = Listener(self.plan.meeting)
            code = self._rounds()
            return code
        finally:
            for number, member in self.members.items():
                if number:
                    member.send({"kind": "end", "code": code})
            if self.listener is not None:
                self.listener.close()
            self.node.close()

    def _wait_for_nodes(self) -> RoundEnded | None:
        """Until as many nodes as are needed have come; what ended the waiting, if they did not."""
        deadline = time.monotonic() + MEETING_SECONDS
        while len(self.members) < self.plan.nodes:
            self._listen(TURN_SECONDS)
            found = self.signals.take()
            if found is not None or self.signals.interrupted_by_user:
                why = f"{found.name if found else 'SIGINT'} received before all nodes had come"
                return RoundEnded(EXIT_INTERRUPTED, Cause.SIGNAL, why, False, None)
            if time.monotonic() > deadline:
                if len(self.members) >= self.plan.needed:
                    break
                why = (
                    f"only {len(self.members)} of {self.plan.needed} nodes have come within {MEETING_SECONDS:.0f} s; "
                    f"each must see {self.plan.meeting}, and reach this node by TCP"
                )
                log.error("%s", why)
                return RoundEnded(1, Cause.START, why, False, None)
        return None

    def _rounds(self) -> int:
        missing = self._wait_for_nodes()
        while True:
            ended = missing or self._one_round()
            verdict = self._decide(ended)
            if ended.cause is not Cause.FINISHED:
                log.info("%s", verdict.why)
            if verdict.kind is verdicts.Kind.RESTART:
                self.bad = frozenset(verdict.exclude)
                continue
            code = self._code_of(ended, verdict)
            if verdict.kind is verdicts.Kind.REQUEUE:
                return self.cluster.requeue(verdict.why, verdict.exclude)
            if not verdict.by_slurm:
                self.cluster.ended(ended.cause, verdict.why)
            return code

    @staticmethod
    def _code_of(ended: RoundEnded, verdict: Verdict) -> int:
        if ended.code == EXIT_INTERRUPTED and verdict.asked_for:
            return EXIT_STOPPED
        return EXIT_HOPELESS if verdict.hopeless else ended.code

    # -- one round --------------------------------------------------------------------------------

    def _one_round(self) -> RoundEnded:
        self.round += 1
        chosen = sorted(sorted(self.members, key=self._worth)[: self.plan.needed])
        port = link.free_port() if self.plan.nodes > 1 else 0
        coordinator = self.coordinator
        coordinator.team = Team({number: self.members[number] for number in chosen})
        try:
            coordinator.begin_round(lambda member: self._environment(member, chosen, port))
        except UsageError:
            self.node.close()
            raise
        while coordinator.ended is None:
            self._turn()
        return coordinator.ended

    def _worth(self, number: int) -> tuple[bool, int]:
        """The first node is always needed: the launchers meet on it."""
        return number > 0 and self.members[number].name in self.bad, number

    def _environment(self, member: Member, chosen: list[int], port: int) -> dict[str, str]:
        """How the launchers of several nodes find each other, in torchrun's variables; explicit flags win."""
        number, ranks = str(chosen.index(member.number)), str(len(chosen))
        more = {"AUTORESUME_NODES": ranks, "AUTORESUME_ROUND": str(self.round)}
        if self.plan.nodes == 1:
            return more
        if self.plan.bare:
            more |= {"RANK": number, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": "1"}
        return more | {
            "PET_NNODES": ranks,
            "PET_NODE_RANK": number,
            "PET_MASTER_ADDR": member.address,
            "PET_MASTER_PORT": str(port),
            "MASTER_ADDR": member.address,
            "MASTER_PORT": str(port),
        }

    def _turn(self) -> None:
        self._listen(TURN_SECONDS)
        found = self.signals.take()
        if found is not None:
            self.coordinator.stop(f"{found.name} received")
            self.cluster.hurry()
        self.signals.pass_on(self.node)
        self.node.turn()  # after the signals: what they interrupt is looked at afterwards
        while self.inbox:
            self.coordinator.receive(*self.inbox.popleft())
        notice = self.cluster.news()
        if notice is not None:
            self.notice = notice
            self.coordinator.set_time_limit(notice.end)
        self.coordinator.turn()
        self._hang_up()

    def _hang_up(self) -> None:
        """A node that was lost takes part in no other round, also if it was silent only; it ends by itself."""
        while self.coordinator.gone:
            number = self.coordinator.gone.pop()
            self.members.pop(number, None)
            if self.listener is not None and number in self.listener.lines:
                self.listener.lines.pop(number).close(0)

    def _listen(self, seconds: float) -> None:
        """Take in what the other nodes say; returns at once when something came."""
        if self.listener is None:
            time.sleep(seconds)
            return
        lines = self.listener.lines
        sockets = [line.socket for line in lines.values() if line.broken is None]
        ready = link.wait([self.listener.socket, *sockets], 0 if self.inbox else seconds)
        for number in self.listener.accept():
            line = lines[number]
            self.members[number] = Member(number, line.send, line.address, line.name)
        for number, line in list(lines.items()):
            line.flush()
            if line.broken is None and line.socket.fileno() in ready:
                self.inbox.extend((number, message) for message in line.receive())
            if line.broken is not None:
                del lines[number]
                self.members.pop(number, None)
                while self.inbox:  # its last words come first
                    self.coordinator.receive(*self.inbox.popleft())
                self.coordinator.node_lost(number, line.broken)

    # -- what follows -----------------------------------------------------------------------------

    def _decide(self, ended: RoundEnded) -> Verdict:
        cause, cluster = ended.cause, self.cluster
        notice = self.notice
        if ended.code not in (EXIT_FINISHED, EXIT_INTERRUPTED) and cause is Cause.UNKNOWN and ended.number is None:
            taken = ended.code == EXIT_PORT_TAKEN and self.round <= _MOST_PORTS
            cause = Cause.COMMUNICATION if taken else Cause.START
        if cause is not Cause.FINISHED and (ended.code == EXIT_INTERRUPTED or notice.over):
            notice = cluster.why_stopped(self.coordinator.state.why)
            cause = notice.cause or cause
        end = LifeEnd(cause, ended.number, ended.stepped, ended.why, self.signals.interrupted_by_user)
        means = Means(
            restarts_here=self.plan.restarts_here and len(self.members) >= self.plan.needed and not notice.over,
            can_requeue=cluster.can_requeue,
            nodes=[member.name or "" for _, member in sorted(self.members.items())],
            spares=len(self.members) - self.plan.needed,
            budgets=self.plan.budgets,
        )
        return conclude_life(ended.run_folder or self.plan.run_folder, end, notice, means)
