"""Messages between the daemons of a job: JSON lines over TCP, and the file by which they find each other.

Law: the coordinator (node 0) listens, and tells where in a file in the run directory that only this user
can read; whoever connects must know the token in it. Nothing here blocks: what came is asked for, and what
can't be sent yet waits. A line that breaks is a node that is lost: nothing is connected anew.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import random
import secrets
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from autoresume.checkpoint.incarnation import boot_id
from autoresume.errors import AgreementError

MEETING_FILE = "coordinator.json"
_HANDSHAKE_SECONDS = 10.0
_CONNECT_SECONDS = 3.0
_LEAST_PORT, _MOST_PORT = 20000, 65536
_PORTS_TRIED = 200
_MOST_BYTES = 1 << 24
"""No message is longer: whoever sends more is no daemon of ours."""


class Line:
    """One connection. `broken` is why nothing comes any more, or None."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket = connection
        self.broken: str | None = None
        self.address = ""
        """At which the other side was, or has, reached the listener."""
        self.name: str | None = None
        """How the other side's node is called."""
        self._early: list[dict[str, Any]] = []
        self._in = bytearray()
        self._out = bytearray()

    def send(self, message: dict[str, Any]) -> None:
        self._out += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        while self._out and self.broken is None:
            try:
                del self._out[: self.socket.send(self._out)]
            except BlockingIOError:
                return
            except OSError as error:
                self.broken = error.strerror or str(error)

    def receive(self) -> list[dict[str, Any]]:
        """What has come since the last call."""
        self.flush()
        while self.broken is None:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                self.broken = error.strerror or str(error)
                break
            if not data:
                self.broken = "the other side closed it"
            self._in += data
            if len(self._in) > _MOST_BYTES:
                self.broken = "it sends what no daemon sends"
        *lines, rest = bytes(self._in).split(b"\n")
        self._in = bytearray(rest)
        try:
            found = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            self.broken, found = "it sends what no daemon sends", []
        early, self._early = self._early, []
        return [*early, *(message for message in found if isinstance(message, dict))]

    def unread(self, messages: list[dict[str, Any]]) -> None:
        """They are received again."""
        self._early = [*messages, *self._early]

    def close(self, patience_seconds: float = 2.0) -> None:
        """Send what is left, and hang up."""
        deadline = time.monotonic() + patience_seconds
        self.flush()
        while self._out and self.broken is None and time.monotonic() < deadline:
            time.sleep(0.005)
            self.flush()
        self.socket.close()


@dataclass
class _Guest:
    line: Line
    since: float


class Listener:
    """The coordinator's side: `lines` are the nodes that have shown the token, by their number."""

    def __init__(self, folder: Path) -> None:
        """Listen, and tell the others where, in `folder`. Raises OSError."""
        self.socket = socket.create_server(("", 0), backlog=1024)
        self.socket.setblocking(False)
        self.lines: dict[int, Line] = {}
        self._guests: list[_Guest] = []
        self._token = secrets.token_hex(16)
        self.path = folder / MEETING_FILE
        folder.mkdir(parents=True, exist_ok=True)
        where = {
            "boot": boot_id(),
            "addresses": addresses(),
            "port": self.socket.getsockname()[1],
            "token": self._token,
            "time": time.time(),
        }
        temp = folder / f"{MEETING_FILE}.{secrets.token_hex(4)}.tmp"
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(where, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temp, self.path)

    def accept(self) -> list[int]:
        """Take in who has come; the numbers of nodes that are new."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                self._guests.append(_Guest(Line(connection), time.monotonic()))
        new, waiting = [], []
        for guest in self._guests:
            messages = guest.line.receive()
            if messages:
                node, token = messages[0].get("node"), str(messages[0].get("token"))
                known = hmac.compare_digest(token.encode(errors="replace"), self._token.encode())
                if known and isinstance(node, int) and node > 0 and node not in self.lines:
                    guest.line.unread(messages[1:])  # what follows the greeting is for later
                    guest.line.address = str(messages[0].get("address"))
                    guest.line.name = messages[0].get("name")
                    self.lines[node] = guest.line
                    guest.line.send({"kind": "hello"})
                    new.append(node)
                    continue
                guest.line.close(0)
            elif guest.line.broken or time.monotonic() - guest.since > _HANDSHAKE_SECONDS:
                guest.line.close(0)
            else:
                waiting.append(guest)
        self._guests = waiting
        return new

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        for line in self.lines.values():
            line.close()
        for guest in self._guests:
            guest.line.close(0)
        self.socket.close()


def wait(sockets: Iterable[socket.socket], seconds: float) -> set[int]:
    """The descriptors among `sockets` that have something to read; waits `seconds` for the first. For any number."""
    poll = select.poll()
    for one in sockets:
        poll.register(one, select.POLLIN)
    try:
        return {descriptor for descriptor, _ in poll.poll(1000 * seconds)}
    except InterruptedError:
        return set()


def find_coordinator(folder: Path, node: int, name: str, patience_seconds: float, give_up: Callable[[], bool]) -> Line:
    """The line to the coordinator that tells of itself in `folder`.

    Waits for the file, which a shared file system may show late. Raises AgreementError after `patience_seconds`, or
    once `give_up()`.
    """
    deadline = time.monotonic() + patience_seconds
    problem = f"{folder / MEETING_FILE} is not there"
    while time.monotonic() < deadline and not give_up():
        try:
            os.listdir(folder)  # NFS looks at a folder anew when it is listed
            where = json.loads((folder / MEETING_FILE).read_text())
            same = where["boot"] == boot_id()
            for address in (["127.0.0.1"] if same else []) + list(where["addresses"]):
                try:
                    return _greet(address, int(where["port"]), str(where["token"]), node, name)
                except OSError as error:
                    problem = f"{address}:{where['port']} answers: {error.strerror or error}"
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there yet, or just being made
        time.sleep(0.2)
    raise AgreementError(
        f"node {node} can't find the job's first node: {problem}. The run directory must lie on a file system that all "
        "nodes share, and the nodes must reach each other by TCP"
    )


def _greet(address: str, port: int, token: str, node: int, name: str) -> Line:
    connection = socket.create_connection((address, port), timeout=_CONNECT_SECONDS)
    line = Line(connection)
    line.address = address
    line.send({"node": node, "token": token, "address": address, "name": name})
    deadline = time.monotonic() + _HANDSHAKE_SECONDS
    while time.monotonic() < deadline and line.broken is None:
        messages = line.receive()
        if messages:
            line.unread(messages[1:])  # what follows the greeting is for later
            return line
        time.sleep(0.005)
    line.close(0)
    raise OSError(errno.ECONNREFUSED, line.broken or "it does not know us")


def addresses() -> list[str]:
    """Where other machines may reach this one, likely ones first."""
    name = socket.gethostname()
    found = []
    with contextlib.suppress(OSError):
        socket.getaddrinfo(name, None)
        found.append(name)
    up = psutil.net_if_stats()
    for interface, entries in psutil.net_if_addrs().items():
        if up.get(interface) and up[interface].isup:
            found += [entry.address for entry in entries if entry.family == socket.AF_INET]
    loopback = [address for address in found if address.startswith("127.")]
    return [address for address in dict.fromkeys(found) if address not in loopback]


def free_port() -> int:
    """A port of this machine that nobody listens at, for a server that starts some seconds later.

    It lies outside the range from which the kernel serves whoever asks for any port (ip(7), ip_local_port_range):
    one from there would sooner or later be somebody's connection before the server is up. Raises OSError.
    """
    low, high = _kernels_ports()
    ports = [port for port in range(_LEAST_PORT, _MOST_PORT) if not low <= port <= high]
    random.SystemRandom().shuffle(ports)
    for port in [*ports[:_PORTS_TRIED], 0]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found: int = probe.getsockname()[1]
            return found
    raise OSError(errno.EADDRINUSE, "no port is free on this machine")


def _kernels_ports() -> tuple[int, int]:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32768, 60999
