"""The launcher of a node: torchrun, with the manners that the daemon needs."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from autoresume.errors import EXIT_PORT_TAKEN
from autoresume.node import link
from tests import warm


def test_a_taken_port_has_a_code_of_its_own(tmp_path: Path) -> None:
    """Where somebody else listens at the meeting's port, torchrun ends so that the daemon can try another."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        flags = ["--nnodes=2", "--nproc-per-node=1", "--node-rank=0", "--master-addr=127.0.0.1"]
        flags.append(f"--master-port={other.getsockname()[1]}")
        command = [sys.executable, "-m", "autoresume.ranks.launcher", *flags, str(tmp_path / "never.py")]
        ended = warm.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == EXIT_PORT_TAKEN, ended.stderr
    assert "the port at which the nodes were to meet is taken" in ended.stderr


def test_a_free_port_is_nobodys_by_chance() -> None:
    """It lies outside the range that the kernel gives to connections, and differs from one call to the next."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = {link.free_port() for _ in range(20)}
    assert not [port for port in ports if low <= port <= high]
    assert len(ports) > 10
