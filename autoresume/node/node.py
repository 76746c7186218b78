"""One node of a job: its launcher and ranks, what it holds in memory, and what it tells the coordinator.

Law: it decides nothing. It notes what happens here and tells it as a message (`tell`), and does what the
coordinator's messages say (`obey`); the coordinator may be in this very process (node/coordinator.py) or on
another node. It owns the node's folder in memory.

    told      signal, wish, state, greeted, answer, rank died, life over, exited, drained
    obeyed    begin, welcome, offer, confirm, withdraw, shut, dump, kill, drain
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.retain import Keep
from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.handoff import kept_snapshots
from autoresume.handoff.fence import DaemonFence, Order
from autoresume.handoff.mailbox import NODE_FOLDER_VARIABLE, STACKS_FILE, Mailbox
from autoresume.handoff.signals import STACKS_SIGNAL
from autoresume.node import processes
from autoresume.node.persister import Persister

log = logging.getLogger("autoresume")

Message = dict[str, Any]
_LOOK_SECONDS = 0.05
"""How often processes are looked at, which costs more than looking at shared memory."""
_STATE_SECONDS = 2.0
"""At least this often a state is told, so that silence means that the node is lost."""


@dataclass
class Life:
    """The ranks that greeted together: one incarnation, as far as this node sees it."""

    run_folder: Path
    ranks: dict[int, tuple[int, float]]
    """local rank -> (pid, start time)"""
    names: dict[int, int]
    """local rank -> rank"""
    died: dict[int, float] = field(default_factory=dict)
    """local rank -> when it was seen to be gone, in seconds since 1970"""


class Node:
    """`command` starts the ranks: torchrun, or one python."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        local_ranks: int,
        environment: Mapping[str, str],
        tell: Callable[[Message], None],
        pace_seconds: float = 0.0,
    ) -> None:
        """`pace_seconds`: how often at most the steps alone are told, where hundreds of nodes tell theirs."""
        self.command, self.local_ranks, self.environment = list(command), local_ranks, environment
        self.send, self.pace_seconds = tell, pace_seconds
        self.mailbox = Mailbox(folder)
        self.fence = DaemonFence(folder / "fence", local_ranks)
        self.persister = Persister(self.mailbox, local_ranks)
        self.life: Life | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.name = node_name()
        self._arrived: dict[int, Message] = {}
        """Hellos of ranks that wait for their welcome."""
        self._taken: frozenset[int] = frozenset()
        self._over_told = False
        self._state: Message = {}
        self._state_at = 0.0
        self._next_look = 0.0
        self._memory_kills = processes.memory_kills()
        pid, started = incarnation.this_process()
        self.mailbox.send("daemon", {"pid": pid, "started": started})

    def close(self) -> None:
        processes.kill_tree()
        self.persister.close()
        self.fence.close()

    # -- one turn of the daemon's loop ------------------------------------------------------------

    def turn(self) -> None:
        self.fence.beat()
        self.persister.start_new()
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_SECONDS
            self._receive_hellos()
            self._note_deaths()
            processes.reap(self.child.pid if self.child else None)
        settled = self.fence.settled()  # before the wishes: one that has just been obeyed does not count
        wish = self.fence.requests()
        if wish:
            self.fence.clear_requests()
            self._note_deaths()  # torchrun tells the others after one has died: look at that first
            # A save that is being taken is wished for until it has come; ranks that fall apart get torchrun's SIGTERM.
            if (wish is Order.STOP and not self._has_failed_rank()) or (wish is Order.SAVE and settled):
                self.send({"kind": "wish", "order": int(wish)})
        self._tell_state()
        code = self.child.poll() if self.child is not None else None
        if code is not None:
            self.child = None
            self._note_deaths()
            self.send({"kind": "exited", "code": code if code >= 0 else 128 - code, "report": self.report()})

    def _tell_state(self) -> None:
        steps = [step for step in self.fence.steps() if step is not None]
        state = {
            "kind": "state",
            "ready": self.life is not None and len(steps) == self.local_ranks and self.fence.settled(),
            "idle": not steps,
            "most": max(steps, default=-1),
            "left": self.life is not None and self.fence.all_left(),
            "settled": self.fence.settled(),
            "cost": self.persister.cost_seconds,
            "busy": self.persister.busy,
        }
        now, told = time.monotonic(), self._state
        news = any(state[word] != told.get(word) for word in ("ready", "idle", "left", "settled", "busy"))
        pace = _STATE_SECONDS if state == told else self.pace_seconds
        if news or now - self._state_at >= pace:
            self._state, self._state_at = state, now
            self.send(state)

    # -- what the coordinator says ----------------------------------------------------------------

    def handle(self, message: Message) -> None:
        kind = message["kind"]
        if kind == "begin":
            self._begin(message["environment"])
        elif kind == "welcome":
            self._welcome()
        elif kind == "offer":
            accepted = self.fence.offer(int(message["target"]), Order(message["order"]))
            most = max((step for step in self.fence.steps() if step is not None), default=-1)
            answer = {"target": message["target"], "accepted": accepted, "left": self.fence.all_left(), "most": most}
            self.send({"kind": "answer", **answer})
        elif kind == "confirm":
            self.fence.confirm()
        elif kind == "withdraw":
            self.fence.withdraw()
        elif kind == "shut":
            self.fence.shut()
        elif kind == "dump":
            self._dump()
        elif kind == "kill":
            self._kill(bool(message["all"]))
        elif kind == "drain":
            processes.kill_tree()
            self.persister.drain()
            self._keep_stacks()
            self.send({"kind": "drained", "report": self.report()})

    def _begin(self, more: Mapping[str, str]) -> None:
        """Start the ranks of a new round. Raises UsageError if the command can't be started."""
        self.life, self._arrived, self._taken, self._over_told = None, {}, frozenset(), False
        for name in self.mailbox.names():
            if name != "daemon" and not name.startswith(kept_snapshots.PREFIX):
                self.mailbox.remove(name)
        self.fence.reset()
        environment = {**self.environment, **more, NODE_FOLDER_VARIABLE: str(self.mailbox.folder)}
        try:
            self.child = processes.spawn(self.command, environment)
        except OSError as error:
            raise UsageError(f"{self.command[0]!r} can't be started: {error.strerror or error}") from error

    def _dump(self) -> None:
        """Ask the ranks for the stacks of all their threads, which the kernel gets whatever they are stuck in."""
        for pid, started in self.life.ranks.values() if self.life else ():
            if incarnation.process_lives(pid, started):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, STACKS_SIGNAL)

    def _keep_stacks(self) -> None:
        """Stacks that were asked for go to the run's folder: stacks/<incarnation>-rank-<rank>.txt."""
        report = self.report()
        if self.life is None or report is None:
            return
        for local, rank in self.life.names.items():
            found = self.mailbox.folder / f"{STACKS_FILE}-{local}"
            if found.exists() and found.stat().st_size:
                target = Path(report["run_folder"]) / names.stacks_file(report["number"] or 0, rank)
                with contextlib.suppress(OSError):
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(found.read_bytes())
                found.unlink()

    def _kill(self, everything: bool) -> None:
        if everything or self.life is None:
            processes.kill_tree()
        else:
            processes.kill(self.life.ranks.values())  # the launcher's new ranks, if any, are spared

    def forward(self, number: signal.Signals) -> None:
        """Ctrl-C is the user's: the ranks get their KeyboardInterrupt."""
        if self.child is not None:
            self.child.send_signal(number)

    # -- ranks come and go ------------------------------------------------------------------------

    def _receive_hellos(self) -> None:
        """When all local ranks of a new start have said hello: settle what the old ones left, then tell."""
        hellos: dict[int, Message] = {}
        for name in self.mailbox.names("hello-"):
            message = self.mailbox.receive(name)
            if message is not None and incarnation.process_lives(message["pid"], message["started"]):
                hellos[int(name.removeprefix("hello-"))] = message
        pids = frozenset(message["pid"] for message in hellos.values())
        if not hellos or len(hellos) < next(iter(hellos.values()))["local_world_size"] or pids == self._taken:
            return
        if pids & self._taken:
            return  # some of them are still the old ones
        if self.life is not None:
            self.persister.drain()  # before anybody claims the next number, which would make them stale
            self._note_deaths()
            self._life_over()
        for leftover in {path.name for path in self.mailbox.folder.glob("arena-*")} - kept_snapshots.kept_arenas(
            self.mailbox
        ):
            (self.mailbox.folder / leftover).unlink(missing_ok=True)
        self._taken, self._arrived = pids, hellos
        first = hellos[min(hellos)]
        self.persister.keep = Keep.of(first["keep"])
        self.send({"kind": "greeted", "run_folder": first["run_folder"], "hang_after": first.get("hang_after")})

    def _welcome(self) -> None:
        hellos, self._arrived = self._arrived, {}
        for prefix in ("bye-", "outcome-", "claimed-"):
            for name in self.mailbox.names(prefix):
                self.mailbox.remove(name)
        self.fence.reset()
        self.life = Life(
            Path(next(iter(hellos.values()))["run_folder"]),
            {local: (message["pid"], message["started"]) for local, message in hellos.items()},
            {local: int(message["rank"]) for local, message in hellos.items()},
        )
        self._over_told = False
        self._memory_kills = processes.memory_kills()
        for local, message in hellos.items():
            self.mailbox.send(f"welcome-{local}", {"pid": message["pid"]})

    def _note_deaths(self) -> None:
        if self.life is None:
            return
        for local, (pid, started) in self.life.ranks.items():
            if local in self.life.died or incarnation.process_lives(pid, started):
                continue
            self.life.died[local] = time.time()
            if not self.mailbox.waiting(f"bye-{local}"):
                log.warning("rank %d (process %d) is gone without a word", self.life.names[local], pid)
                self.send({"kind": "rank died", "rank": self.life.names[local]})
        if len(self.life.died) == len(self.life.ranks):
            self._life_over()

    def _life_over(self) -> None:
        if not self._over_told:
            self._over_told = True
            self.send({"kind": "life over", "report": self.report()})

    def _has_failed_rank(self) -> bool:
        """A rank has failed, or is gone: torchrun now sends SIGTERM to the others, which is no preemption."""
        if self.life is None:
            return False
        return bool(self.life.died) or any(bye.get("how") == "failed" for bye in self._goodbyes().values())

    def _goodbyes(self) -> dict[int, Message]:
        found = {int(name.removeprefix("bye-")): self.mailbox.receive(name) for name in self.mailbox.names("bye-")}
        return {local: bye for local, bye in found.items() if bye is not None}

    def report(self) -> Message | None:
        """What this node knows of the life that it has seen; None if there was none."""
        life = self.life
        if life is None:
            return None
        numbers = [self.mailbox.receive(name) for name in self.mailbox.names("claimed-")]
        steps = [step for step in self.fence.steps() if step is not None]
        byes = self._goodbyes()
        return {
            "run_folder": str(life.run_folder),
            "number": next((int(found["number"]) for found in numbers if found), None),
            "node": self.name,
            "step": max(steps, default=None),
            "ranks": len(life.ranks),
            "byes": [{**bye, "rank": life.names[local]} for local, bye in byes.items() if local in life.names],
            "silent": [
                {"rank": life.names[local], "time": life.died.get(local)} for local in life.ranks if local not in byes
            ],
            "memory_kills": processes.memory_kills() - self._memory_kills,
            "save_seconds": self.persister.cost_seconds,
        }


def node_name() -> str:
    """How the batch system, or else the network, calls this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
