"""The first node's daemon: it decides for all nodes of the job what happens next.

Law: what the nodes tell becomes events of the pure table (node/policy.py), and its actions become messages to
the nodes. A round is one start of the launcher on all nodes; when all have ended and persisted, the round is
over, is written down, and node/verdicts.py says whether another one begins here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresume.checkpoint import incarnation
from autoresume.errors import EXIT_FINISHED, EXIT_INTERRUPTED, AutoresumeError
from autoresume.handoff.fence import Order
from autoresume.node import causes, policy
from autoresume.node.causes import Cause, Lost
from autoresume.node.hang_timeout import HangTimeout
from autoresume.node.policy import Kind, State
from autoresume.node.team import SILENT_SECONDS, Member, Message, Team
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")


@dataclass(frozen=True)
class RoundEnded:
    """What became of a round."""

    code: int
    cause: Cause
    why: str
    stepped: bool
    """Some rank had reached a step boundary."""
    run_folder: Path | None
    number: int | None = None
    """Of the incarnation that has ended; None if none was claimed."""


class Coordinator:
    def __init__(self, team: Team, grace_seconds: float) -> None:
        self.team = team
        self.grace_seconds = grace_seconds
        self.state = State()
        self.run_folder: Path | None = None
        self.ended: RoundEnded | None = None
        self._hang_timeout = HangTimeout()
        self._welcomed = False
        self._finished_ranks = False
        self._stepped = False
        self._step_at = time.monotonic()
        self._most = -1
        self._lost: list[Lost] = []
        self._reports: list[dict[str, Any]] = []
        """Of the life that the nodes see, or have seen, last."""
        self.gone: set[int] = set()
        """Nodes that were lost: whoever holds their lines hangs up."""

    # -- what happens -----------------------------------------------------------------------------

    def begin_round(self, environments: Callable[[Member], dict[str, str]]) -> None:
        """Start the launchers on all nodes."""
        limit = self.state.limit
        self.state, self.ended, self._welcomed, self._stepped = State(limit=limit), None, False, False
        self._lost, self._reports, self._most, self._step_at = [], [], -1, time.monotonic()
        self.team.renew()
        for member in self.team.members.values():
            member.exited, member.drained = None, False
            member.heard = time.monotonic()  # of a spare node nothing was heard so far
        for member in self.team.members.values():
            member.send({"kind": "begin", "environment": environments(member)})

    def stop(self, why: str) -> None:
        """A stop is wanted, at a common step."""
        if not self.state.interrupted:
            log.info("%s: the ranks stop at a common step", why)
            self.handle(policy.Signalled(why, self.grace_seconds))

    def receive(self, number: int, message: Message) -> None:
        """A node tells something."""
        member = self.team.members.get(number)
        if member is None:
            return
        member.heard = time.monotonic()
        kind = message["kind"]
        if kind == "state":
            member.state = message
        elif kind == "signal":
            self.stop(f"{message['name']} received")
        elif kind == "wish":
            if message["order"] == Order.STOP:
                if not self._has_failed_node():
                    self.stop("a signal to stop reached a rank")
            else:
                self.handle(policy.Wished())
        elif kind == "greeted":
            member.greeted = message
            self._welcome_all()
        elif kind == "answer":
            self.team.answer(number, message)
        elif kind == "rank died":
            self.handle(policy.RankDied(int(message["rank"])))
        elif kind == "life over":
            member.over, member.report = True, message["report"]
            if all(one.over for one in self.team.members.values()):
                self.handle(policy.LifeOver())
            elif not self._ended_in_order(message["report"]):
                self.handle(policy.RankDied(-1))
        elif kind == "exited":
            self._exited(member, message)
        elif kind == "drained":
            member.drained = True
            member.report = message["report"] or member.report

    def node_lost(self, number: int, why: str) -> None:
        """A node is gone."""
        member = self.team.members.get(number)
        if member is None or member.drained:
            return
        log.warning("node %d is lost: %s", number, why)
        self._lost.append(Lost(number, member.name, why))
        self.gone.add(number)
        if member.report is not None:
            self._reports.append(member.report)
        self.team.lose(number)
        if member.exited is None:
            self.handle(policy.NodeLost(number, why))

    def turn(self) -> None:
        """One look at the clock."""
        now = time.monotonic()
        for number, member in list(self.team.members.items()):
            if number and now - member.heard > SILENT_SECONDS:
                self.node_lost(number, f"it has said nothing for {SILENT_SECONDS:.0f} s")
        over, target = self.team.answered()
        if over:
            self.handle(policy.Proposed(target))
        self.team.shut_if_all_left()
        team = self.team
        if team.most > self._most:
            if self._most >= 0:
                self._hang_timeout.note(now - self._step_at)
            self._most, self._step_at = team.most, now
        self._stepped = self._stepped or team.most >= 0
        resting = any(member.state.get("left") for member in team.members.values())
        self.handle(
            policy.Tick(
                ready=self._welcomed and team.every("ready"),
                idle=team.most < 0,
                silent_seconds=0.0 if not self._welcomed or resting else now - self._step_at,
                hang_after=self._hang_timeout.seconds(stepped=self._most >= 0),
                cost_seconds=team.cost_seconds or 0.0,
                busy=team.busy,
            )
        )
        members = self.team.members.values()
        if not self.state.over and all(member.exited is not None for member in members):
            self._launchers_exited()
        if self.state.over and self.ended is None and all(member.drained for member in members):
            self._round_over()

    def set_time_limit(self, end: float | None) -> None:
        """The monotonic moment at which the job is ended, as the cluster says it now."""
        lead = policy.lead_seconds(self.team.cost_seconds, self._hang_timeout.longest_seconds)
        self.handle(policy.Limit(end, lead))

    def handle(self, event: policy.Event) -> None:
        self.state, actions = policy.step(self.state, event, time.monotonic())
        for action in actions:
            if action.kind is Kind.PROPOSE:
                self.team.propose(action.ahead, action.order)
            elif action.kind is Kind.DRAIN:
                self.team.tell_all({"kind": "drain"})
            elif action.kind is Kind.DUMP:
                log.warning("%s; the stacks of all ranks go to stacks/ in the run's folder", action.why)
                self.team.tell_all({"kind": "dump"})
            else:
                log.warning("the ranks are killed: %s", action.why)
                self.team.tell_all({"kind": "kill", "all": action.kind is Kind.KILL_ALL or not self._welcomed})

    # -- lives come and go ------------------------------------------------------------------------

    def _welcome_all(self) -> None:
        members = self.team.members.values()
        if not all(member.greeted for member in members):
            return
        self._record_end()
        hello = next(iter(members)).greeted or {}
        self.run_folder = Path(hello["run_folder"])
        self._hang_timeout.given = hello.get("hang_after")
        self._welcomed, self._most, self._step_at = True, -1, time.monotonic()
        self.team.renew()
        self.handle(policy.Greeted())
        self.team.tell_all({"kind": "welcome"})

    def _exited(self, member: Member, message: Message) -> None:
        member.exited = int(message["code"])
        member.report = message["report"] or member.report
        others = [one for one in self.team.members.values() if one.exited is None]
        if others and not self._ended_in_order(member.report):
            self.handle(policy.RankDied(-1))  # the others wait for its ranks in vain

    def _ended_in_order(self, report: Message | None) -> bool:
        """All ranks of that node said that they are finished, or interrupted as they were told."""
        if report is None:
            return False
        words = {bye["how"] for bye in report["byes"]}
        return not report["silent"] and words <= {"finished", "interrupted"}

    def _has_failed_node(self) -> bool:
        return any(member.exited or member.over for member in self.team.members.values())

    def _launchers_exited(self) -> None:
        members = list(self.team.members.values())
        codes = [member.exited for member in members if member.exited]
        reports = [member.report for member in members]
        said = [bye["how"] for report in reports if report for bye in report["byes"]]
        ranks = sum(report["ranks"] for report in reports if report)
        whole = bool(said) and None not in reports and not self._lost and len(said) == ranks
        finished, interrupted = whole and set(said) == {"finished"}, whole and set(said) == {"interrupted"}
        code = codes[0] if codes else (1 if self._lost else EXIT_FINISHED)
        self.handle(policy.LauncherExited(code, finished, interrupted))

    def _round_over(self) -> None:
        assert self.state.exit_code is not None
        code, cause, why, number = self.state.exit_code, Cause.UNKNOWN, self.state.why, None
        buried = self._record_end()
        if buried is not None:
            cause, why, number = buried["cause"], buried["why"], buried["number"]
        elif self._lost:
            cause = Cause.NODE
        elif code == EXIT_INTERRUPTED:
            cause = Cause.SIGNAL
        elif code == EXIT_FINISHED:
            cause = Cause.FINISHED
        self.ended = RoundEnded(code, cause, why, self._stepped, self.run_folder, number)

    def _record_end(self) -> dict[str, Any] | None:
        """Write down how the life that the nodes saw has ended. The first word counts."""
        members = self.team.members.values()
        reports = [*self._reports, *(member.report for member in members if member.report is not None)]
        self._reports = []
        for member in members:
            member.report = None
        numbers = [report["number"] for report in reports if report["number"] is not None]
        if not numbers:
            return None
        what = causes.cause_of(reports, self.state.why if self.state.interrupted else None, self.state.hung, self._lost)
        costs = [report["save_seconds"] for report in reports if report["save_seconds"] is not None]
        storage, number = LocalStorage(reports[0]["run_folder"]), max(numbers)
        more = {"cause": what.cause.value, "node": what.node, "save_seconds": max(costs, default=None), **what.more}
        try:
            incarnation.record_end(storage, number, what.how, what.step, what.why, more)
            known = incarnation.read(storage, number).ended or {}
        except (OSError, AutoresumeError) as error:
            log.warning("how incarnation %d ended could not be written down: %s", number, error)
            known = {}
        return {"cause": Cause(known.get("cause") or what.cause.value), "why": what.why, "number": number}
