"""The mailbox: whole messages or none, in a folder that is this user's alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoresume.errors import UsageError
from autoresume.handoff.mailbox import Mailbox, memory_root


def test_a_message_stays_until_it_is_removed(tmp_path: Path) -> None:
    """What was sent is received, any number of times, until whoever acted on it removes it."""
    box = Mailbox(tmp_path)
    assert (box.receive("hello-0"), box.waiting("hello-0")) == (None, False)
    box.send("hello-0", {"pid": 7, "why": "grüß"})
    assert [box.receive("hello-0"), box.receive("hello-0")] == [{"pid": 7, "why": "grüß"}] * 2
    assert box.waiting("hello-0")
    box.remove("hello-0")
    assert (box.receive("hello-0"), box.waiting("hello-0")) == (None, False)
    box.remove("hello-0")  # somebody else was quicker: nothing happens


def test_sending_again_replaces(tmp_path: Path) -> None:
    """A message is named by what it says: the last one counts, and there is one file."""
    box = Mailbox(tmp_path)
    box.send("hello-0", {"pid": 1})
    box.send("hello-0", {"pid": 2})
    assert box.receive("hello-0") == {"pid": 2}
    assert os.listdir(tmp_path) == ["hello-0.json"]


def test_names_are_told_oldest_first(tmp_path: Path) -> None:
    """Messages are listed in the order in which they were sent, by prefix; files that are no messages are not."""
    box = Mailbox(tmp_path)
    for index, name in enumerate(["sealed-b", "sealed-a", "bye-0"]):
        box.send(name, {})
        os.utime(tmp_path / f"{name}.json", ns=(index, index))
    (tmp_path / "sealed-c.json.1234.tmp").write_text("{")
    (tmp_path / "sealed-arena").write_text("")
    assert box.names("sealed-") == ["sealed-b", "sealed-a"]
    assert box.names() == ["sealed-b", "sealed-a", "bye-0"]


def test_a_message_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """Somebody who reads while another process sends again and again never sees half a message."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom autoresume.handoff.mailbox import Mailbox\n"
        "box = Mailbox(Path(sys.argv[1]))\n"
        "for turn in range(1500): box.send('big', {'turn': turn, 'text': 'x' * (turn % 7) * 5000})\n"
        "box.send('big', {'turn': -1, 'text': ''})\n"
    )
    box = Mailbox(tmp_path)
    sender = subprocess.Popen([sys.executable, "-c", script, tmp_path])
    turns, message = set(), None
    while message is None or message["turn"] >= 0:
        message = box.receive("big")
        if message is not None and message["turn"] >= 0:
            assert message["text"] == "x" * (message["turn"] % 7) * 5000
            turns.add(message["turn"])
        elif message is None:
            assert not turns, "a message that was there has gone, though it was only replaced"
            assert sender.poll() in (None, 0)
    assert sender.wait(10) == 0
    assert len(turns) > 10
    assert os.listdir(tmp_path) == ["big.json"]


def test_the_folder_in_memory_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory can be read by its user alone, and a second call gives the same folder."""
    monkeypatch.setenv("AUTORESUME_MEMORY", str(tmp_path))
    root = memory_root()
    assert (root.parent, root.stat().st_mode & 0o777) == (tmp_path, 0o700)
    assert memory_root() == root


def test_somebody_elses_folder_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that others may open, or a link that somebody laid there, is not used: the error names it."""
    monkeypatch.setenv("AUTORESUME_MEMORY", str(tmp_path))
    root = memory_root()
    root.chmod(0o755)
    with pytest.raises(UsageError, match=root.name):
        memory_root()
    root.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=root.name):
        memory_root()


def test_without_shared_memory_the_temporary_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without /dev/shm is no reason to fail."""
    monkeypatch.setenv("AUTORESUME_MEMORY", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert memory_root().parent == tmp_path
