"""The node daemon as a rank sees it: its parent, or its launcher's.

Law: messages in the daemon's folder, and waiting for its answers. Whether the daemon lives is looked at while waiting:
nobody waits for a dead one.
"""

from __future__ import annotations

import faulthandler
import os
import time
from pathlib import Path

from autoresume.checkpoint import incarnation
from autoresume.config.options import Options
from autoresume.errors import AgreementError, UsageError
from autoresume.handoff import kept_snapshots
from autoresume.handoff.mailbox import NODE_FOLDER_VARIABLE, STACKS_FILE, Mailbox
from autoresume.handoff.signals import STACKS_SIGNAL
from autoresume.ranks.agreement import Ranks

_WELCOME_SECONDS = 600.0


class DaemonClient:
    """The node daemon as a rank sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mailbox = Mailbox(folder)
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.slot = int(os.environ.get("LOCAL_RANK", "0")) if self.local_world_size > 1 else 0
        """This rank's place among those of its daemon; a task for each GPU has a daemon of its own."""
        value = self.mailbox.receive("daemon")
        if value is None:
            raise UsageError(f"{NODE_FOLDER_VARIABLE} names {folder}, where there is no daemon; unset it")
        self.process = (int(value["pid"]), float(value["started"]))
        self._stacks = open(folder / f"{STACKS_FILE}-{self.slot}", "w")
        faulthandler.register(STACKS_SIGNAL, self._stacks, all_threads=True)

    @classmethod
    def of_environment(cls) -> DaemonClient | None:
        folder = os.environ.get(NODE_FOLDER_VARIABLE)
        return cls(Path(folder)) if folder else None

    def is_alive(self) -> bool:
        return incarnation.process_lives(*self.process)

    def register(self, ranks: Ranks, run_folder: Path, options: Options) -> None:
        """Tell the daemon who we are, and wait until what our predecessors left is settled on all nodes."""
        together = int(os.environ.get("GROUP_WORLD_SIZE", ranks.world_size // self.local_world_size))
        known = int(os.environ.get("AUTORESUME_NODES", "1"))
        if together != known:
            raise UsageError(
                f"{together} nodes train together, but their daemons know of {known}: each saves and stops by itself. "
                "Start them with srun, or with autoresume node --nodes N --node-rank I --meeting FOLDER"
            )
        pid, started = incarnation.this_process()
        self.mailbox.send(
            f"hello-{self.slot}",
            {
                "pid": pid,
                "started": started,
                "rank": ranks.rank,
                "local_world_size": self.local_world_size,
                "run_folder": str(run_folder.absolute()),
                "keep": options.retention.to_json(),
                "hang_after": options.hang_seconds,
            },
        )
        deadline = time.monotonic() + _WELCOME_SECONDS
        while True:
            welcome = self.mailbox.receive(f"welcome-{self.slot}")
            if welcome is not None and welcome["pid"] == pid:
                return
            if not self.is_alive():
                raise AgreementError("the node daemon died while this rank was starting")
            if time.monotonic() > deadline:
                raise AgreementError(f"the node daemon did not answer within {_WELCOME_SECONDS:.0f} s")
            time.sleep(0.005)

    def release_kept_snapshots(self) -> None:
        """All ranks have read what they need: what the last life left in memory makes room for this one's snapshots."""
        if self.slot == 0:
            kept_snapshots.drop_all(self.mailbox)

    def report_incarnation(self, number: int) -> None:
        """Tell the daemon which incarnation this is."""
        self.mailbox.send(f"claimed-{self.slot}", {"number": number})
