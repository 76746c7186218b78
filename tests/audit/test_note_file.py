"""What a rank noted is there after its death, and never costs the training anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoresume.audit import note_file
from autoresume.audit.note import Note, differences
from autoresume.audit.note_file import NoteFile


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(note_file, "VISIBLE_SECONDS", 0.0)


def note(step: int, life: int = 1, ranks: int = 2, **more: object) -> Note:
    return Note(step, life, ranks, ["0a", "0b"], [0.1, float("nan")], [1e-3], "01-02-03", {"n": 1}, **more)  # type: ignore[arg-type]


def test_they_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is written at once, those that come within half a second with the next write, or the end."""
    monkeypatch.setattr(note_file, "VISIBLE_SECONDS", 1e9)
    path = tmp_path / "rank.jsonl"
    file = NoteFile(path)
    file.begin(0, 2)
    file._written = float("-inf")
    for step in range(1, 4):
        file.append(note(step))
    assert list(NoteFile(path).begin(0, 2)) == [1]
    file.close()


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    """A note is read by the next life although this one never closed its file; a torn line is none."""
    path = tmp_path / "notes" / "rank-00000.jsonl"
    dead = NoteFile(path)
    assert dead.begin(0, 2) == {}
    for step in range(1, 6):
        dead.append(note(step))
    with path.open("ab") as file:
        file.write(b'{"step":6,"li')
    found = NoteFile(path).begin(3, 2)
    assert list(found) == [4, 5]
    assert repr(found[4]) == repr(note(4))


def test_the_newest_life_counts(tmp_path: Path) -> None:
    """Of a step that two lives made, the note of the later one; steps that only the first one made are there, too."""
    path = tmp_path / "rank.jsonl"
    first, second = NoteFile(path), NoteFile(path)
    first.begin(0, 2)
    for step in range(1, 5):
        first.append(note(step))
    second.begin(1, 2)
    second.append(note(2, life=2))
    found = NoteFile(path).begin(1, 2)
    assert [(step, one.life) for step, one in found.items()] == [(2, 2), (3, 1), (4, 1)]


def test_another_number_of_ranks(tmp_path: Path) -> None:
    """Notes of a life with another number of ranks are of other batches: nothing is compared with them."""
    path = tmp_path / "rank.jsonl"
    NoteFile(path).begin(0, 4)
    one = NoteFile(path)
    one.begin(0, 4)
    one.append(note(1, ranks=4))
    assert NoteFile(path).begin(0, 2) == {}


def test_it_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What checkpoints have overtaken is dropped, and a long way without a save is noted for its first part."""
    monkeypatch.setattr(note_file, "_MOST_BYTES", 2000)
    monkeypatch.setattr(note_file, "_MOST_NOTES", 100)
    path = tmp_path / "rank.jsonl"
    file = NoteFile(path)
    file.begin(0, 2)
    for step in range(1, 41):
        file.append(note(step))
        if step % 10 == 0:
            file.saved(step)
    assert path.stat().st_size < 12 * len(note(40).to_line())
    for step in range(41, 300):
        file.append(note(step))
    file.close()
    assert max(NoteFile(path).begin(40, 2)) == 140
    last = NoteFile(path)
    last.begin(40, 2)
    last.close(finished=True)
    assert not path.exists()


def test_a_disk_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and training goes on."""
    (tmp_path / "notes").write_text("a file where the folder should be")
    file = NoteFile(tmp_path / "notes" / "rank.jsonl")
    with caplog.at_level("INFO", "autoresume"):
        assert file.begin(0, 2) == {}
        for step in range(1, 4):
            file.append(note(step))
        file.saved(3)
        file.close()
    assert caplog.text.count("not noted any more") == 1


def test_differences_come_in_their_order() -> None:
    """The data before the loss, that before learning rates, those before generators; bit for bit, NaN equal to NaN."""
    one, other = note(1), note(1, life=2)
    assert list(differences(one, other, ["optimizer"])) == []
    other.batches, other.losses, other.rates = ["0a"], [0.1, 0.2], [2e-3]
    other.generators, other.state = "01-02-04", {"n": 2}
    found = list(differences(one, other, ["optimizer"]))
    assert [one.component for one in found] == ["batch", "loss", "option", "generator", "state"]
    assert found[0].words(1) == "the batches hold other values (2 batches in life 1, 1 batch now)"
    assert found[2].words(1) == "the lr of optimizer differs (0.001 in life 1, 0.002 now)"
    other = note(1)
    other.losses = [0.1, 0.0]
    assert [one.a for one in differences(note(1), other, ["optimizer"])] == ["nan"]
    other.losses = [0.1 + 1e-17, float("nan")]
    assert [one.component for one in differences(note(1), other, ["optimizer"])] == ["loss"], "the last bit counts"
