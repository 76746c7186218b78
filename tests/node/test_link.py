"""The line between daemons, with real sockets: who is let in, what is never lost, and how it breaks."""

from __future__ import annotations

import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoresume.errors import AgreementError
from autoresume.node import link
from autoresume.node.link import MEETING_FILE, Line, Listener, find_coordinator
from tests.node.harness import wait_until


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path / "meet")
    yield made
    made.close()


def where(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "meet" / MEETING_FILE).read_text())
    return found


def guest(folder: Path, *messages: Any) -> Line:
    """Somebody who connects and says so much."""
    line = Line(socket.create_connection(("127.0.0.1", where(folder)["port"]), timeout=5))
    for message in messages:
        line.send(message)
    return line


class Meeting(threading.Thread):
    """Another node that looks for the coordinator."""

    def __init__(self, folder: Path, node: int = 1, patience: float = 20.0) -> None:
        super().__init__(daemon=True)
        self.folder, self.node, self.patience = folder, node, patience
        self.line: Line | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.line = find_coordinator(
                self.folder / "meet", self.node, f"name{self.node}", self.patience, lambda: False
            )
        except AgreementError as error:
            self.error = error

    def met(self, listener: Listener) -> Line:
        wait_until(lambda: listener.accept() or self.line or self.error)
        self.join(20)
        assert self.line is not None, self.error
        return self.line


def heard(line: Line, count: int) -> list[dict[str, Any]]:
    found = list[dict[str, Any]]()
    wait_until(lambda: found.extend(line.receive()) or len(found) >= count or line.broken, what=f"{count} messages")
    return found


def test_two_nodes_meet(listener: Listener, tmp_path: Path) -> None:
    """They tell their numbers, names and addresses; messages come in order, whole, both ways."""
    line = Meeting(tmp_path).met(listener)
    other = listener.lines[1]
    assert (other.address, other.name) == ("127.0.0.1", "name1")
    for number in range(300):
        line.send({"n": number, "text": "x" * 1000})
        other.send({"n": -number})
    assert [message["n"] for message in heard(other, 300)] == list(range(300))
    assert [message["n"] for message in heard(line, 300)] == [-number for number in range(300)]
    line.close()


def test_only_its_user_can_read_the_token(listener: Listener, tmp_path: Path) -> None:
    """The file is private, and nothing temporary is left beside it."""
    assert stat.S_IMODE((tmp_path / "meet" / MEETING_FILE).stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "meet").iterdir()] == [MEETING_FILE]


@pytest.mark.parametrize(
    "greeting",
    [
        {"node": 1, "token": "wrong"},
        {"node": 1},
        {"node": 1, "token": None},
        {"token": "right"},
        {"node": 0, "token": "right"},
        {"node": "1", "token": "right"},
        {"node": -1, "token": "right"},
        {},
    ],
    ids=str,
)
def test_who_is_not_let_in(listener: Listener, tmp_path: Path, greeting: dict[str, Any]) -> None:
    """A wrong token, or no node's number: the line is closed, and nobody is new."""
    if greeting.get("token") == "right":
        greeting = {**greeting, "token": where(tmp_path)["token"]}
    line = guest(tmp_path, greeting)
    wait_until(lambda: listener.accept() or line.receive() or line.broken)
    assert line.broken == "the other side closed it"
    assert listener.lines == {}
    line.close(0)


def test_a_second_node_of_the_same_number_is_not_let_in(listener: Listener, tmp_path: Path) -> None:
    """Its line does not take the place of the first one's."""
    first = Meeting(tmp_path).met(listener)
    kept = listener.lines[1]
    line = guest(tmp_path, {"node": 1, "token": where(tmp_path)["token"]})
    wait_until(lambda: listener.accept() or line.receive() or line.broken)
    assert listener.lines == {1: kept}
    first.send({"still": "here"})
    assert heard(kept, 1) == [{"still": "here"}]
    line.close(0)
    first.close()


def test_a_silent_guest_holds_nobody_up(listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are let in meanwhile; after a while it is sent away."""
    silent = guest(tmp_path)
    assert listener.accept() == []
    Meeting(tmp_path).met(listener).close()
    assert silent.receive() == []
    assert silent.broken is None
    monkeypatch.setattr(link, "_HANDSHAKE_SECONDS", 0.0)
    wait_until(lambda: listener.accept() or silent.receive() or silent.broken)
    assert silent.broken == "the other side closed it"
    silent.close(0)


@pytest.mark.parametrize(
    "rubbish",
    [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"{\n", b"[" * 100_000 + b"\n", b'{"node": 1, "token": "\\ud800"}\n'],
    ids=range(5),
)
def test_a_stranger_with_another_language_is_sent_away(listener: Listener, tmp_path: Path, rubbish: bytes) -> None:
    """A scanner of ports, or anything else that is no daemon, ends nothing but its own line."""
    stranger = socket.create_connection(("127.0.0.1", where(tmp_path)["port"]), timeout=5)
    stranger.sendall(rubbish)
    stranger.setblocking(False)

    def closed() -> bool:
        listener.accept()
        try:
            return stranger.recv(1) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    wait_until(closed)
    stranger.close()
    Meeting(tmp_path).met(listener).close()


def test_what_follows_a_greeting_at_once_is_not_lost(listener: Listener, tmp_path: Path) -> None:
    """On both sides: the greeting and the first messages may arrive in one piece."""
    early = guest(tmp_path, {"node": 2, "token": where(tmp_path)["token"]}, {"n": 1}, {"n": 2})
    wait_until(listener.accept)
    assert heard(listener.lines[2], 2) == [{"n": 1}, {"n": 2}]
    early.close()
    # The other side: a coordinator of ours that greets and orders with one send.
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = {**where(tmp_path), "port": server.getsockname()[1], "token": "t"}
        (tmp_path / "meet" / MEETING_FILE).write_text(json.dumps(told))
        meeting = Meeting(tmp_path)
        connection, _ = server.accept()
        connection.recv(1 << 16)
        connection.sendall(b'{"kind": "hello"}\n{"kind": "begin"}\n{"kind": "off')
        meeting.join(20)
        assert meeting.line is not None
        assert heard(meeting.line, 1) == [{"kind": "begin"}]
        connection.sendall(b'er"}\n')
        assert heard(meeting.line, 1) == [{"kind": "offer"}]
        meeting.line.close(0)
        connection.close()


def test_a_line_without_an_end_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody fills our memory: whoever sends more than any message is no daemon."""
    monkeypatch.setattr(link, "_MOST_BYTES", 1 << 18)
    ours, theirs = socket.socketpair()
    line = Line(ours)
    sender = threading.Thread(target=_pour, args=(theirs,), daemon=True)
    sender.start()
    wait_until(lambda: line.receive() or line.broken)
    assert line.broken == "it sends what no daemon sends"
    line.close(0)
    sender.join(20)
    theirs.close()


def _pour(connection: socket.socket) -> None:
    try:
        while True:
            connection.sendall(b"x" * 65536)
    except OSError:
        pass


def test_a_long_message_that_the_other_side_is_slow_to_take(listener: Listener, tmp_path: Path) -> None:
    """Sending never waits: what the line can't take yet goes out later, in order."""
    line = Meeting(tmp_path).met(listener)
    other = listener.lines[1]
    began = time.monotonic()
    for number in range(40):
        line.send({"n": number, "text": "y" * 200_000})
    assert time.monotonic() - began < 10
    found = list[dict[str, Any]]()
    wait_until(lambda: line.flush() or found.extend(other.receive()) or len(found) == 40)
    assert [message["n"] for message in found] == list(range(40))
    line.close()


def test_the_coordinator_dies(listener: Listener, tmp_path: Path) -> None:
    """Its last words are heard, then the line is broken; whoever sends into it learns that, too."""
    line = Meeting(tmp_path).met(listener)
    listener.lines[1].send({"kind": "end", "code": 75})
    listener.close()
    assert heard(line, 1) == [{"kind": "end", "code": 75}]
    wait_until(lambda: line.receive() or line.broken)
    wait_until(lambda: line.send({"kind": "state"}) or line.broken)
    assert not (tmp_path / "meet" / MEETING_FILE).exists()
    line.close(0)


def test_the_file_may_come_late_and_piecemeal(tmp_path: Path) -> None:
    """A shared file system shows the folder, then half of the file, then all of it: the node goes on looking."""
    meeting = Meeting(tmp_path)
    (tmp_path / "meet").mkdir()
    (tmp_path / "meet" / MEETING_FILE).write_text('{"boot": "')
    listener = Listener(tmp_path / "meet")
    meeting.met(listener).close()
    listener.close()


def test_the_file_of_a_coordinator_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what was tried, and what has to hold; a token that does not fit is no reason to wait for ever."""
    monkeypatch.setattr(link, "_HANDSHAKE_SECONDS", 0.2)
    with pytest.raises(
        AgreementError, match=r"node 3 can't find the job's first node: .*coordinator\.json is not there"
    ):
        find_coordinator(tmp_path, 3, "n3", 0.1, lambda: False)
    listener = Listener(tmp_path / "meet")
    told = where(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        (tmp_path / "meet" / MEETING_FILE).write_text(
            json.dumps({**told, "port": mute.getsockname()[1], "addresses": []})
        )
        with pytest.raises(AgreementError, match="it does not know us"):
            find_coordinator(tmp_path / "meet", 3, "n3", 0.1, lambda: False)
    listener.close()


def test_a_node_that_is_told_to_stop_looks_no_further(tmp_path: Path) -> None:
    """A signal ends the search."""
    with pytest.raises(AgreementError):
        find_coordinator(tmp_path, 1, "n1", 600.0, lambda: True)
