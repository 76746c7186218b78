"""A rank without torch: greets the daemon, steps, seals snapshots and obeys the fence as `Orders` does.

Started by fake_launcher.py, or by the daemon itself where it is the only rank. What it did is in
FOLDER/rank-<rank>.jsonl, one line for each thing that it did.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.incarnation import Incarnation
from autoresume.checkpoint.persist import Snapshot
from autoresume.errors import EXIT_INTERRUPTED
from autoresume.format.digest import canonical
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk, chunks_json
from autoresume.format.tensorfile import Entry, lay_out
from autoresume.handoff.arena import Arena
from autoresume.handoff.fence import Order, Phase, RankFence
from autoresume.handoff.mailbox import NODE_FOLDER_VARIABLE, Mailbox
from autoresume.handoff.signals import SignalTrap
from autoresume.snapshot.sinks import DaemonSink, Sealed
from autoresume.storage.local import LocalStorage

RUN_ID = "fa4e4a4c0001"
FLOATS = 3000
PATIENCE_SECONDS = 30.0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="run/ is the run's folder, the rest are notes")
    parser.add_argument("--steps", type=int, default=10**9, help="the run is finished after so many")
    parser.add_argument("--pause", type=float, default=0.002, help="seconds a step takes")
    parser.add_argument("--skew", type=float, default=0.0, help="seconds that each rank is later than the one before")
    parser.add_argument("--save-every", type=int, default=10**9)
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--at", type=int, default=0, help="the step at which the accident happens, once")
    parser.add_argument("--rank", type=int, default=0, help="the rank that has it")
    parser.add_argument("--accident", default="", help="kill, exit, segfault, fail, leave, hang, child, none")
    parser.add_argument("--wish", choices=["", "once", "always"], default="", help="from --at on rank 0 wishes saves")
    parser.add_argument("--hang-at-start", action="store_true", help="never come to the first boundary")
    parser.add_argument("--lockstep", action="store_true", help="all ranks end their steps together")
    return parser.parse_args()


class FakeRank:
    def __init__(self, chosen: argparse.Namespace) -> None:
        self.options = chosen
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.slot = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.life = int(os.environ.get("FAKE_LIFE") or os.environ.get("AUTORESUME_ROUND", "1"))
        self.folder: Path = chosen.folder
        self.storage = LocalStorage(self.folder / "run")
        self.trap = SignalTrap([signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
        self.trap.install()
        self.notes = open(self.folder / f"rank-{self.rank}.jsonl", "a", buffering=1)
        self.mailbox = Mailbox(Path(os.environ[NODE_FOLDER_VARIABLE]))
        owner = self.mailbox.receive("daemon")
        assert owner is not None
        self.daemon = (int(owner["pid"]), float(owner["started"]))
        self.arenas: list[Arena] = []
        self.saved = -1

    def note(self, what: str, **more: Any) -> None:
        self.notes.write(json.dumps({"what": what, "life": self.life, **more}) + "\n")

    # -- the beginning ----------------------------------------------------------------------------

    def begin(self) -> None:
        pid, started = incarnation.this_process()
        self.mailbox.send(
            f"hello-{self.slot}",
            {
                "pid": pid,
                "started": started,
                "rank": self.rank,
                "local_world_size": self.local_world_size,
                "run_folder": str(self.storage.root),
                "keep": {"last": self.options.keep},
                "grace": 30.0,
            },
        )
        self._wait(lambda: (self.mailbox.receive(f"welcome-{self.slot}") or {}).get("pid") == pid)
        self.number = self._number()
        self.mailbox.send(f"claimed-{self.slot}", {"number": self.number})
        self.note("began", pid=pid, number=self.number, node=os.environ.get("SLURMD_NODENAME"))
        self.fence = RankFence(self.mailbox.folder / "fence", self.slot)
        self.sink = DaemonSink(self.mailbox, self.storage.root, self.daemon, incarnation.process_lives)

    def _number(self) -> int:
        told = self.folder / f"life-{self.life}"
        if self.rank == 0:
            own = [incarnation.this_process(), self.daemon]
            number = incarnation.claim(self.storage, lambda number: self._record(number, own), own).number
            told.with_suffix(".tmp").write_text(str(number))
            told.with_suffix(".tmp").rename(told)
        self._wait(told.exists)
        return int(told.read_text())

    def _record(self, number: int, own: list[tuple[int, float]]) -> Incarnation:
        return Incarnation(
            number=number,
            run_id=RUN_ID,
            host=socket.gethostname(),
            boot=incarnation.boot_id(),
            processes=own,
            world_size=self.world_size,
            command=sys.argv,
            began={"time": time.time(), "step": 0, "checkpoint": None},
        )

    def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "the fake rank waited in vain"
            time.sleep(0.002)

    # -- training ---------------------------------------------------------------------------------

    def train(self) -> NoReturn:
        if self.options.hang_at_start:
            self.note("hangs")
            while True:
                time.sleep(1)
        step = 0
        while step < self.options.steps:
            if self.options.pause:
                time.sleep(self.options.pause)
            step += 1
            self._keep_step(step)
            if self.options.skew:
                time.sleep(self.options.skew * self.rank)
            order = self._boundary(step)
            if order or step % self.options.save_every == 0:
                self._save(step)
            if order:
                self.note("acted", step=step, order=order.name)
            if order is Order.STOP:
                self._end("interrupted", step, "asked to stop")
                sys.exit(0 if "TORCHELASTIC_RUN_ID" in os.environ else EXIT_INTERRUPTED)
            if step == self.options.at and self.rank == self.options.rank and self.life == 1:
                self._accident(step)
        self.fence.publish(step, Phase.LEFT)
        self._wait(lambda: self._rests(step))
        name = self._save(step)
        self._wait(lambda: self.storage.size(name.manifest) is not None)
        self._end("finished", step, "the script came to its end")
        sys.exit(0)

    def _rests(self, step: int) -> bool:
        """As Orders.wait_for_all_ranks: obey what the others are still to reach; True when nothing comes any more."""
        closed = self.fence.closed()
        order = self.fence.after_loop(step)
        if order:
            self._save(step)  # under its own step, which is the last of all
            self.note("acted", step=step, order=order.name)
        return closed and not order

    def _keep_step(self, step: int) -> None:
        """Ranks that train together end their steps together, since each waits for all gradients."""
        if not self.options.lockstep:
            return
        mine = self.folder / f"at-{self.life}-{self.rank}"
        mine.write_text("x" * step)
        others = [self.folder / f"at-{self.life}-{rank}" for rank in range(self.world_size)]
        self._wait(lambda: all(other.exists() and other.stat().st_size >= step for other in others))

    def _boundary(self, step: int) -> Order:
        """As Orders.at_boundary: first the wish, then the fence."""
        if self.trap.first is not None:
            self.fence.request(Order.STOP)
        elif self.rank == 0 and self.options.wish and step >= self.options.at:
            self.fence.request(Order.SAVE)
        order = self.fence.at_boundary(step)
        if order is Order.SAVE and self.options.wish == "once":
            self.options.wish = ""
        return order

    def _accident(self, step: int) -> None:
        kind = self.options.accident
        self.note("accident", step=step, kind=kind)
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "exit":
            os._exit(9)
        elif kind == "segfault":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            ctypes.string_at(0)
        elif kind == "fail":
            self._end("failed", step, "ValueError: loss is nan")
            sys.exit(1)
        elif kind == "leave":
            self._end("interrupted", step, "asked to stop by another rank")
            sys.exit(0)
        elif kind == "hang":
            while True:
                time.sleep(1)
        elif kind == "child":
            subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(600)", str(self.folder)], start_new_session=True
            )

    # -- saving -----------------------------------------------------------------------------------

    def _save(self, step: int) -> CheckpointName:
        name = CheckpointName(step=step, incarnation=self.number, epoch=0, samples=step * 10)
        if self.saved == step:
            return name
        layout = lay_out([Entry("weights", "float32", (FLOATS,))], {"format": "pt"})
        arena = self._free_arena(layout.size)
        image = arena.view(layout.size)
        image[: len(layout.header)] = layout.header
        image[len(layout.header) :] = content(self.rank, step)
        shape = (FLOATS,)
        chunk = Chunk("weights", "float32", shape, (0,), shape, False, layout.begins[0])
        attachments = {"buffer": (f"pickles/rank-{self.rank:05d}-buffer.pkl", b"cloud")} if self.rank == 0 else {}
        snapshot = Snapshot(
            run_id=RUN_ID,
            checkpoint=name,
            rank=self.rank,
            world_size=self.world_size,
            time=round(time.time(), 3),
            image=image,
            chunks=chunks_json([chunk]),
            tree=canonical({"step": step}),
            about={"world_size": self.world_size},
            attachments=attachments,
        )
        self.sink.submit(Sealed(snapshot, arena))
        self.saved = step
        self.note("sealed", step=step, name=str(name))
        return name

    def _free_arena(self, size: int) -> Arena:
        while True:
            for arena in self.arenas:
                if not self.sink.busy(arena):
                    return arena
            if len(self.arenas) < 2:
                path = self.mailbox.folder / f"arena-{self.slot:05d}-{time.monotonic_ns():x}"
                self.arenas.append(Arena(size, path))
                return self.arenas[-1]
            time.sleep(0.002)

    def _end(self, how: str, step: int, why: str) -> None:
        self.mailbox.send(f"bye-{self.slot}", {"how": how, "step": step, "why": why, "time": time.time()})
        self.note("bye", how=how, step=step)
        self.sink.close()
        for arena in self.arenas:
            arena.close(unlink=True)


def content(rank: int, step: int) -> bytes:
    """What the tensor of a rank holds at a step."""
    return bytes((rank * 31 + step + index) % 251 for index in range(256)) * (FLOATS * 4 // 256) + bytes(
        FLOATS * 4 % 256
    )


if __name__ == "__main__":
    rank = FakeRank(options())
    rank.begin()
    rank.train()
