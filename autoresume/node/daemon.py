"""The node daemon: the parent of the launcher and its ranks, which it outlives.

Law: one loop: note what happened, ask the policy, do what it says. Signal handlers set flags. It owns
the node's folder in memory, and removes it; it leaves no process and no file behind, whatever happens
to the ranks. What a daemon that was itself killed left is settled by the next one (`adopt`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.retain import Keep
from autoresume.errors import EXIT_FINISHED, EXIT_INTERRUPTED, EXIT_NO_STEP, AutoresumeError, UsageError
from autoresume.handoff.fence import DaemonFence, Order
from autoresume.handoff.mailbox import NODE_FOLDER_VARIABLE, Mailbox, memory_root
from autoresume.handoff.signals import SignalTrap
from autoresume.node import policy, processes
from autoresume.node.custodian import Custodian
from autoresume.node.policy import Kind, State
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")

_TURN_SECONDS = 0.01
_LOOK_SECONDS = 0.05
"""How often processes are looked at, which costs more than looking at shared memory."""
_CAUSE_SECONDS = 1.0
"""A rank that is gone without a word within this time of another's error is the cause of that error."""


@dataclass
class _Life:
    """The ranks that greeted the daemon together: one incarnation, as far as this node sees it."""

    run_folder: Path
    number: int
    ranks: dict[int, tuple[int, float]]
    """local rank -> (pid, start time)"""
    died: dict[int, float] = field(default_factory=dict)
    """local rank -> when it was seen to be gone, in seconds since 1970"""


class NodeDaemon:
    """`command` starts the ranks: torchrun, or one python. `grace_seconds` holds for every stop signal."""

    def __init__(
        self,
        command: Sequence[str],
        local_ranks: int,
        grace_seconds: float,
        environment: Mapping[str, str],
    ) -> None:
        self.command, self.local_ranks, self.grace_seconds = list(command), local_ranks, grace_seconds
        self.environment = environment
        self.state = State()
        self.life: _Life | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self._taken: frozenset[int] = frozenset()
        self._stepped = False
        self._next_look = 0.0

    def run(self) -> int:
        """Start the ranks and stay until they are gone and everything sealed is settled; the exit code."""
        processes.become_subreaper()
        stop = SignalTrap([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
        user = SignalTrap([signal.SIGINT, signal.SIGHUP])
        stop.install()
        user.install()
        root = memory_root()
        adopt(root)
        folder = root / f"node-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        self.mailbox = Mailbox(folder)
        self.fence = DaemonFence(folder / "fence", self.local_ranks)
        self.custodian = Custodian(self.mailbox, self.local_ranks)
        pid, started = incarnation.this_process()
        self.mailbox.send("daemon", {"pid": pid, "started": started})
        try:
            try:
                self.child = processes.spawn(self.command, {**self.environment, NODE_FOLDER_VARIABLE: str(folder)})
            except OSError as error:
                raise UsageError(f"{self.command[0]!r} can't be started: {error.strerror or error}") from error
            while not self.state.over:
                self._turn(stop, user)
                time.sleep(_TURN_SECONDS)
            assert self.state.exit_code is not None
            failed = self.state.exit_code not in (EXIT_FINISHED, EXIT_INTERRUPTED)
            stepped = self._stepped or not self._idle()  # a rank may have died of its first steps just now
            return EXIT_NO_STEP if failed and not stepped else self.state.exit_code
        finally:
            processes.kill_tree()
            self.custodian.close()
            self.fence.close()
            shutil.rmtree(folder, ignore_errors=True)
            stop.restore()
            user.restore()

    # -- one turn of the loop ---------------------------------------------------------------------

    def _turn(self, stop: SignalTrap, user: SignalTrap) -> None:
        self.fence.beat()
        if stop.first is not None and not self.state.interrupted:
            self._stop(f"{stop.first.name} received")
        if user.first is not None:
            assert self.child is not None
            self.child.send_signal(user.first)  # Ctrl-C is the user's: the ranks get their KeyboardInterrupt
            user.clear()
        self.custodian.look()
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_SECONDS
            self._greetings()
            self._deaths()
            processes.reap(self.child.pid if self.child else None)
        settled = self.fence.settled()  # before the wishes: one that has just been obeyed does not count
        wish = self.fence.wishes()
        if wish:
            self.fence.forget_wishes()
            self._deaths()  # torchrun tells the others after one has died: look at that first
            if wish is Order.STOP and not self._falls_apart():
                self._stop("a signal to stop reached a rank")
            elif wish is Order.SAVE and settled:
                self._happened(policy.Wished())  # else it is being taken: a rank wishes until it has it
        self._stepped = self._stepped or not self._idle()
        self._happened(policy.Tick(ready=self._ready(), idle=self._idle()))
        code = self.child.poll() if self.child else 0
        if code is not None:
            code = code if code >= 0 else 128 - code
            finished, interrupted = self._all_said("finished"), self._all_said("interrupted")
            self._happened(policy.LauncherExited(code, finished, interrupted))

    def _stop(self, why: str) -> None:
        if not self.state.interrupted:
            log.info("%s: the ranks stop at a common step within %.0f s", why, self.grace_seconds)
            self._happened(policy.Signalled(why, self.grace_seconds))

    def _happened(self, event: policy.Event) -> None:
        self.state, actions = policy.step(self.state, event, time.monotonic())
        for action in actions:
            if action.kind is Kind.PROPOSE:
                target = self.fence.propose(action.ahead, action.order)
                self._happened(policy.Proposed(target))
            elif action.kind is Kind.DRAIN:
                processes.kill_tree()
                self.custodian.drain()
                self._bury()
            else:
                log.warning("the ranks are killed: %s", action.why)
                if action.kind is Kind.KILL_ALL:
                    processes.kill_tree()
                elif self.life is not None:
                    processes.kill(self.life.ranks.values())  # the launcher's new ranks, if any, are spared

    def _byes(self) -> list[str]:
        return [str((self.mailbox.receive(name) or {}).get("how")) for name in self.mailbox.names("bye-")]

    def _all_said(self, how: str) -> bool:
        return self.life is not None and self._byes() == [how] * len(self.life.ranks)

    def _falls_apart(self) -> bool:
        """A rank has failed, or is gone: torchrun now sends SIGTERM to the others, which is no preemption."""
        return self.life is not None and (bool(self.life.died) or "failed" in self._byes())

    def _ready(self) -> bool:
        return self.life is not None and None not in self.fence.steps() and self.fence.settled()

    def _idle(self) -> bool:
        return all(step is None for step in self.fence.steps())

    # -- ranks come and go ------------------------------------------------------------------------

    def _greetings(self) -> None:
        """When all local ranks of a new start have said hello: settle the old ones, then welcome the new."""
        hellos: dict[int, dict[str, Any]] = {}
        for name in self.mailbox.names("hello-"):
            message = self.mailbox.receive(name)
            if message is not None and incarnation.process_lives(message["pid"], message["started"]):
                hellos[int(name.removeprefix("hello-"))] = message
        pids = frozenset(message["pid"] for message in hellos.values())
        if not hellos or len(hellos) < next(iter(hellos.values()))["local_world_size"] or pids == self._taken:
            return
        if pids & self._taken:
            return  # some of them are still the old ones
        self.custodian.drain()
        self._bury()
        for leftover in self.mailbox.folder.glob("arena-*"):
            leftover.unlink(missing_ok=True)
        for name in self.mailbox.names("bye-") + self.mailbox.names("outcome-"):
            self.mailbox.remove(name)
        self.fence.reset()
        self._taken = pids
        first = hellos[min(hellos)]
        self.custodian.keep = keep_of(first["keep"])
        self.life = _Life(
            Path(first["run_folder"]),
            int(first["incarnation"]),
            {local: (message["pid"], message["started"]) for local, message in hellos.items()},
        )
        self._happened(policy.Greeted())
        for local, message in hellos.items():
            self.mailbox.send(f"welcome-{local}", {"pid": message["pid"]})

    def _deaths(self) -> None:
        if self.life is None:
            return
        for local, (pid, started) in self.life.ranks.items():
            if local in self.life.died or incarnation.process_lives(pid, started):
                continue
            self.life.died[local] = time.time()
            if not self.mailbox.waiting(f"bye-{local}"):
                log.warning("rank %d (process %d) is gone without a word", local, pid)
                self._happened(policy.RankDied(local))
            if len(self.life.died) == len(self.life.ranks):
                self._happened(policy.LifeOver())

    def _cause(self, life: _Life) -> tuple[str, str]:
        """Of all that the ranks said, or did not say, what came first."""
        how, why, said = "died", "", float("inf")
        byes = [self.mailbox.receive(name) or {} for name in self.mailbox.names("bye-")]
        for message in sorted(byes, key=lambda bye: bye.get("how") != "failed")[:1]:  # a failure explains the others
            how, why, said = str(message.get("how")), str(message.get("why")), float(message.get("time", 0.0))
        silent = [local for local in life.ranks if not self.mailbox.waiting(f"bye-{local}")]
        if how == "interrupted" and self.state.interrupted:
            why = self.state.why
        if not silent:
            return how, why
        gone = min(silent, key=lambda local: life.died.get(local, float("inf")))
        if life.died.get(gone, float("inf")) > said + _CAUSE_SECONDS:
            return how, why  # it was ended since another one had failed
        if self.state.interrupted:
            return "interrupted", self.state.why
        return "died", f"rank {gone} was killed, or crashed"

    def _bury(self) -> None:
        """Write down how the incarnation ended that this node has just seen end. The first word counts."""
        life, self.life = self.life, None
        if life is None:
            return
        steps = [step for step in self.fence.steps() if step is not None]
        how, why = self._cause(life)
        try:
            incarnation.end(LocalStorage(life.run_folder), life.number, how, max(steps, default=None), why)
        except (OSError, AutoresumeError) as error:
            log.warning("how incarnation %d ended could not be written down: %s", life.number, error)


def keep_of(value: Sequence[Any]) -> Keep:
    return Keep(int(value[0]), value[1], value[2])


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
                custodian = Custodian(mailbox, 1)
                for name in mailbox.names("hello-"):
                    custodian.keep = keep_of((mailbox.receive(name) or {})["keep"])
                custodian.drain()
                custodian.close()
        except (OSError, ValueError, KeyError) as error:
            log.warning("what a killed daemon left in %s can't be read: %s", folder, error)
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
