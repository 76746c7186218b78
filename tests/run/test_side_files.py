"""A script's own files beside its state."""

import os
import sys
from pathlib import Path

import pytest

from tests import warm

SCRIPT = """
import os, signal, sys
import autoresume
run = autoresume.start(save_every="4 steps", keep=2)
run.restore()
began = run.step_count
seen = []
for step in run.steps(12):
    path = run.directory / "files" / "best.txt"
    seen.append(path.read_text() if path.exists() else "none")
    if step % 3 == 2:
        with run.open("best.txt", "wb") as file:
            file.write(f"written in step {step}".encode())
    if run.incarnation == 1 and step == int(os.environ.get("DIE", -1)):
        os.kill(os.getpid(), signal.SIGKILL)
print(began, seen[0])
with run.open("best.txt") as file:
    print(file.read().decode())
run.finish()
"""


@pytest.mark.parametrize("daemon", [False, True], ids=["alone", "with the daemon"])
def test_side_files_are_never_newer_than_the_state(daemon: bool, tmp_path: Path) -> None:
    """A best.pt that was rewritten after the last checkpoint is back as it was at the checkpoint after a resume."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "AUTORESUME_RUN_DIR": str(tmp_path / "run"), "AUTORESUME_MEMORY": str(tmp_path)}
    command = [sys.executable, *(["-m", "autoresume", "run"] if daemon else []), str(script)]
    first = warm.run(command, env={**environment, "DIE": "9"}, capture_output=True, text=True)
    if not daemon:
        assert first.returncode == -9
        first = warm.run(command, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    began, seen = first.stdout.splitlines()[-2].split(maxsplit=1)
    before = max((step for step in (2, 5, 8) if step < int(began)), default=None)
    assert int(began) in (0, 4, 8)  # whichever checkpoint was committed when it was killed
    assert seen == ("none" if before is None else f"written in step {before}"), (
        "as it was at the checkpoint, though step 8 had rewritten it"
    )
    assert first.stdout.splitlines()[-1] == "written in step 11"


def test_a_file_that_fails_to_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """An exception in the block that writes publishes nothing, and leaves nothing behind."""
    from autoresume.storage.local import LocalStorage

    storage = LocalStorage(tmp_path)
    with storage.writer("files/best.txt") as file:
        file.write(b"old")
    with pytest.raises(RuntimeError, match="half"):
        _write_half(storage)
    assert (tmp_path / "files" / "best.txt").read_bytes() == b"old"
    assert storage.list("files") == ["best.txt"]


def _write_half(storage) -> None:
    with storage.writer("files/best.txt") as file:
        file.write(b"ne")
        raise RuntimeError("half")
