"""The node daemon: the parent of the launcher and its ranks, which it outlives.

Law: one loop: what signals, ranks, other nodes and the cluster say goes to the coordinator, which is here on
node 0 and at the end of a line elsewhere; what it answers is done. Signal handlers set flags. The daemon leaves
no process and no file in memory behind, whatever happens to the ranks. What a daemon that was itself killed
left is settled by the next one (`adopt`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.retain import Keep
from autoresume.errors import EXIT_FINISHED, EXIT_HOPELESS, EXIT_INTERRUPTED, EXIT_PORT_TAKEN, EXIT_STOPPED, UsageError
from autoresume.handoff.mailbox import Mailbox, memory_root
from autoresume.handoff.signals import SignalTrap
from autoresume.node import brain, conclusion, link, processes
from autoresume.node.brain import Cause, Verdict
from autoresume.node.cluster import Cluster, NoCluster, Notice
from autoresume.node.coordinator import Coordinator, RoundEnded
from autoresume.node.link import Listener
from autoresume.node.node import Message, Node, node_name
from autoresume.node.persister import Persister
from autoresume.node.team import Member, Team

log = logging.getLogger("autoresume")

_TURN_SECONDS = 0.01
_MOST_PORTS = 3
"""So many rounds in a row may find their port taken."""
_MEETING_SECONDS = 600.0
_PACE_SECONDS = 1.0
"""How often a node tells node 0 of its steps: an offer's answer tells them at once when it matters."""


@dataclass(frozen=True)
class Plan:
    """What a daemon is to do. `command` starts the ranks of this node; `grace_seconds` holds for every stop signal."""

    command: Sequence[str]
    local_ranks: int
    grace_seconds: float
    environment: Mapping[str, str]
    nodes: int = 1
    """Nodes of the job, spare ones included."""
    node_rank: int = 0
    spares: int = 0
    meeting: Path | None = None
    """Folder on a file system that all nodes share; needed for more than one."""
    run_folder: Path | None = None
    """Of the run, where that is known before its ranks have named it."""
    bare: bool = False
    """The command is a rank itself, and no launcher: each node has one."""
    restarts_here: bool = False
    """Whether ranks that came to a bad end are started again by this daemon; else by whoever started it."""
    budgets: Mapping[Cause, int | None] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        return self.nodes - self.spares


class NodeDaemon:
    def __init__(self, plan: Plan, cluster: Cluster | None = None) -> None:
        self.plan = plan
        self.cluster: Cluster = cluster or NoCluster()
        self._stop = SignalTrap([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
        self._user = SignalTrap([signal.SIGINT, signal.SIGHUP])

    def run(self) -> int:
        """Start the ranks and stay until they are gone and everything sealed is settled; the exit code."""
        processes.become_subreaper()
        self._stop.install()
        self._user.install()
        root = memory_root()
        adopt(root)
        folder = root / f"node-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        try:
            return _FirstNode(self, folder).run() if self.plan.node_rank == 0 else _OtherNode(self, folder).run()
        finally:
            processes.kill_tree()
            shutil.rmtree(folder, ignore_errors=True)
            self._stop.restore()
            self._user.restore()

    def new_signal(self) -> signal.Signals | None:
        """The stop signal that came, once."""
        found, self._stop.first = self._stop.first, None
        return found

    def pass_on(self, node: Node) -> None:
        if self._user.first is not None:
            node.forward(self._user.first)
            self._user.clear()

    @property
    def interrupted_by_user(self) -> bool:
        return self._user.count > 0


class _FirstNode:
    """The daemon of node 0."""

    def __init__(self, daemon: NodeDaemon, folder: Path) -> None:
        self.daemon, self.plan = daemon, daemon.plan
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
        deadline = time.monotonic() + _MEETING_SECONDS
        while len(self.members) < self.plan.nodes:
            self._listen(_TURN_SECONDS)
            found = self.daemon.new_signal()
            if found is not None or self.daemon.interrupted_by_user:
                why = f"{found.name if found else 'SIGINT'} received before all nodes had come"
                return RoundEnded(EXIT_INTERRUPTED, Cause.SIGNAL, why, False, None)
            if time.monotonic() > deadline:
                if len(self.members) >= self.plan.needed:
                    break
                why = (
                    f"only {len(self.members)} of {self.plan.needed} nodes have come within {_MEETING_SECONDS:.0f} s; "
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
            if verdict.kind is brain.Kind.RESTART:
                self.bad = frozenset(verdict.exclude)
                continue
            code = self._code_of(ended, verdict)
            if verdict.kind is brain.Kind.REQUEUE:
                return self.daemon.cluster.requeue(verdict.why, verdict.exclude)
            if not verdict.by_slurm:
                self.daemon.cluster.ended(ended.cause, verdict.why)
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
        self._listen(_TURN_SECONDS)
        found = self.daemon.new_signal()
        if found is not None:
            self.coordinator.stop(f"{found.name} received")
            self.daemon.cluster.hurry()
        self.daemon.pass_on(self.node)
        self.node.turn()  # after the signals: what they interrupt is looked at afterwards
        while self.inbox:
            self.coordinator.receive(*self.inbox.popleft())
        notice = self.daemon.cluster.news()
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
        cause, cluster = ended.cause, self.daemon.cluster
        notice = self.notice
        if ended.code not in (EXIT_FINISHED, EXIT_INTERRUPTED) and cause is Cause.UNKNOWN and ended.number is None:
            taken = ended.code == EXIT_PORT_TAKEN and self.round <= _MOST_PORTS
            cause = Cause.COMMUNICATION if taken else Cause.START
        if cause is not Cause.FINISHED and (ended.code == EXIT_INTERRUPTED or notice.over):
            notice = cluster.why_stopped(self.coordinator.state.why)
            cause = notice.cause or cause
        return conclusion.conclude_life(
            ended.run_folder or self.plan.run_folder,
            cause,
            notice,
            number=ended.number,
            why=ended.why,
            nodes=[member.name or "" for _, member in sorted(self.members.items())],
            spares=len(self.members) - self.plan.needed,
            stepped=ended.stepped,
            stop_wanted=self.daemon.interrupted_by_user,
            restarts_here=self.plan.restarts_here and len(self.members) >= self.plan.needed and not notice.over,
            can_requeue=cluster.can_requeue,
            budgets=self.plan.budgets,
        )


class _OtherNode:
    """The daemon of any other node."""

    def __init__(self, daemon: NodeDaemon, folder: Path) -> None:
        self.daemon, self.plan = daemon, daemon.plan
        assert self.plan.meeting is not None
        self.line = link.find_coordinator(
            self.plan.meeting,
            self.plan.node_rank,
            node_name(),
            _MEETING_SECONDS,
            lambda: daemon._stop.first is not None,
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
        link.wait([self.line.socket], _TURN_SECONDS)
        found = self.daemon.new_signal()
        if found is not None:
            self.line.send({"kind": "signal", "name": found.name})
            self.leave_at = min(self.leave_at, time.monotonic() + 10 * self.plan.grace_seconds)
        self.daemon.pass_on(self.node)
        for message in self.line.receive():
            if message.get("kind") == "end":
                return int(message["code"])
            self.node.handle(message)
        if self.line.broken is not None or time.monotonic() > self.leave_at:
            log.warning("the first node is gone (%s): what is sealed here is persisted", self.line.broken or "silent")
            self.node.handle({"kind": "drain"})
            return 1
        return None


def adopt(root: Path) -> None:
    """Settle what daemons that were killed left in this user's memory: persist what was sealed, free the rest."""
    for folder in sorted(root.glob("node-*")):
        mailbox = Mailbox(folder)
        try:
            owner = mailbox.receive("daemon")
            if owner is not None and incarnation.process_lives(owner["pid"], owner["started"]):
                continue
            if owner is None and time.time() - folder.stat().st_mtime < 60:
                continue  # it is just being made
            if mailbox.names("sealed-"):
                log.info("a node daemon was killed here; persisting the snapshots that it left")
                persister = Persister(mailbox, 1)
                for name in mailbox.names("hello-"):
                    persister.keep = Keep.of((mailbox.receive(name) or {})["keep"])
                persister.drain()
                persister.close()
        except (OSError, ValueError, KeyError) as error:
            log.warning("what a killed daemon left in %s can't be read: %s", folder, error)
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
