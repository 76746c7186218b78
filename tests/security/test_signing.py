"""With a signing key nothing is restored that was written, or changed, by somebody who does not have it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.drill.quick import SCRIPTS
from tests.real_scripts.harness import Ended, Place, environment

TRAINER = str(SCRIPTS / "trainer.py")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return key_file(tmp_path / "key", "0123456789abcdef" * 4)


def key_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text + "\n")
    path.chmod(mode)
    return path


def train(place: Place, key: Path | None, **more: str) -> Ended:
    signed = {"AUTORESUME_SIGNING_KEY": str(key)} if key else {}
    return place.run(TRAINER, "none", AUTORESUME_SAVE_EVERY="2", **signed, **more)


def stopped(place: Place, key: Path | None) -> Path:
    """A run that was killed in the middle; its checkpoints."""
    ended = train(place, key, AUTORESUME_FAILPOINT="commit.after_manifest:4")
    assert ended.code == -9, ended.err
    return place.run_folder / "checkpoints"


def test_a_signed_run_goes_on(tmp_path: Path, key: Path) -> None:
    """With the same key, and to the same end as a run without any: the same metrics."""
    signed, plain = Place(tmp_path / "signed"), Place(tmp_path / "plain")
    stopped(signed, key)
    ended = train(signed, key)
    assert (ended.code, "goes on after step" in ended.err) == (0, True), ended.err
    assert train(plain, None).code == 0
    values = [{step: v["loss"] for step, v in place.metrics.items()} for place in (signed, plain)]
    assert values[0] == values[1]
    verify = [sys.executable, "-m", "autoresume", "verify", str(signed.run_folder)]
    with_key = environment(AUTORESUME_SIGNING_KEY=str(key))
    assert warm.run(verify, env=with_key, capture_output=True, timeout=60).returncode == 0
    without = warm.run(verify, env=environment(), capture_output=True, text=True, timeout=60)
    assert without.returncode == 1
    assert "signed with a key (AUTORESUME_SIGNING_KEY)" in without.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("written", "read", "said"),
    [
        (None, "this", "it is not signed"),
        ("other", "this", "signed with another key"),
        ("this", None, "signed with a key (AUTORESUME_SIGNING_KEY)"),
    ],
)
def test_what_others_wrote_is_not_restored(
    tmp_path: Path, key: Path, written: str | None, read: str | None, said: str
) -> None:
    """Checkpoints that are whole, and not signed with our key: nothing starts, from scratch neither, and nothing is lost."""
    keys = {"this": key, "other": key_file(tmp_path / "other", "f" * 32), None: None}
    place = Place(tmp_path / "run")
    checkpoints = stopped(place, keys[written])
    there = sorted(os.listdir(checkpoints))
    ended = train(place, keys[read])
    assert ended.code == 1
    assert said in ended.err
    assert "It was not started from scratch" in ended.err
    assert sorted(os.listdir(checkpoints)) == there


def test_what_was_changed_is_noticed(tmp_path: Path, key: Path) -> None:
    """One bit of the newest checkpoint, of each kind of file: it is put aside, and the run goes on from the one before."""
    for pattern in ("shards/*", "parts/*", "manifest.json"):
        place = Place(tmp_path / pattern[:5])
        newest = max(stopped(place, key).glob("E*"), key=lambda path: int(path.name.split("_U")[1].split("_")[0]))
        (file,) = newest.glob(pattern)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        ended = train(place, key)
        assert ended.code == 0, ended.err
        assert f"{newest.name} is put aside" in ended.err


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("0" * 32, 0o644, "chmod 600"),
        ("0" * 32, 0o620, "chmod 600"),
        ("short", 0o600, "a key has 16 to 64"),
        ("0" * 100, 0o600, "openssl rand"),
        (None, 0o600, "can't be read"),
    ],
)
def test_a_key_that_is_none(tmp_path: Path, text: str | None, mode: int, said: str) -> None:
    """One that others can read, that is too short or long, or is not there: a clear word before anything begins."""
    path = tmp_path / "key"
    if text is not None:
        key_file(path, text, mode)
    place = Place(tmp_path / "run")
    ended = train(place, path)
    assert ended.code == 1
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not list(place.folder.glob("runs/*/checkpoints/*"))
