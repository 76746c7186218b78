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
import time
from pathlib import Path

from autoresume.checkpoint import incarnation
from autoresume.checkpoint.retain import Keep
from autoresume.handoff.mailbox import Mailbox, memory_root
from autoresume.node import processes
from autoresume.node.cluster import Cluster, NoCluster
from autoresume.node.first_node import FirstNode
from autoresume.node.other_node import OtherNode
from autoresume.node.persister import Persister
from autoresume.node.plan import Plan
from autoresume.node.stop_signals import StopSignals

log = logging.getLogger("autoresume")


class NodeDaemon:
    def __init__(self, plan: Plan, cluster: Cluster | None = None) -> None:
        self.plan = plan
        self.cluster: Cluster = cluster or NoCluster()

    def run(self) -> int:
        """Start the ranks and stay until they are gone and everything sealed is settled; the exit code."""
        processes.become_subreaper()
        signals = StopSignals()
        signals.install()
        root = memory_root()
        adopt(root)
        folder = root / f"node-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        try:
            if self.plan.node_rank == 0:
                return FirstNode(self.plan, self.cluster, signals, folder).run()
            return OtherNode(self.plan, signals, folder).run()
        finally:
            processes.kill_tree()
            shutil.rmtree(folder, ignore_errors=True)
            signals.restore()


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
