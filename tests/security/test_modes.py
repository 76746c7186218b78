"""Who may read and write what a run leaves: the user alone in memory, and as the umask says in the run directory."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.drill.quick import SCRIPTS
from tests.real_scripts.harness import Place, environment

TRAINER = str(SCRIPTS / "trainer.py")
WATCHED = """
import os, stat, sys
from pathlib import Path
from autoresume import Run, autoresume
import torch

@autoresume(save_every=1)
def main(run: Run) -> None:
    model = torch.nn.Linear(2, 2)
    run.track(model=model)
    for step in run.steps(6):
        model.weight.data += 1
        if step == 5:
            for folder, folders, files in os.walk(os.environ["AUTORESUME_MEMORY"]):
                for name in [*folders, *files]:
                    path = Path(folder, name)
                    print("MODE", oct(stat.S_IMODE(path.lstat().st_mode)), path.name)

main()
"""


def test_what_is_in_memory_is_the_user_s_alone(tmp_path: Path) -> None:
    """Snapshots, the fence and the mailbox of a running daemon: nothing of them can others even list, whatever the umask."""
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    memory = tmp_path / "memory"
    memory.mkdir(mode=0o777)
    env = environment(AUTORESUME_MEMORY=str(memory), AUTORESUME_RUN_DIR=str(tmp_path / "run"))
    command = [sys.executable, "-m", "autoresume", "run", "--once", str(script)]
    done = warm.run(command, env=env, capture_output=True, text=True, timeout=120, check=False, umask=0)
    assert done.returncode == 0, done.stderr
    modes = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("MODE")]
    assert {"fence"} <= {name for _, name in modes}
    top = [int(mode, 8) for mode, name in modes if name.startswith("autoresume")]
    assert top, modes
    assert all(mode & 0o077 == 0 for mode in top), modes
    arenas = [int(mode, 8) for mode, name in modes if name.startswith(("arena", "fence"))]
    assert arenas
    assert all(mode & 0o077 == 0 for mode in arenas), modes


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_the_run_directory_honours_the_umask(tmp_path: Path, umask: int) -> None:
    """A group that shares its runs can read, or write, all of one; by 077 nobody else can."""
    place = Place(tmp_path / "run")
    place.folder.mkdir()
    before = os.umask(umask)
    try:
        ended = place.run(TRAINER, "none", AUTORESUME_LOGGERS="csv")
    finally:
        os.umask(before)
    assert ended.code == 0, ended.err
    paths = [place.run_folder, *place.run_folder.rglob("*")]
    assert len(paths) > 10
    for path in paths:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, (path, oct(path.stat().st_mode))


def test_a_foreign_folder_in_memory_is_refused(tmp_path: Path) -> None:
    """Where memory is writable to all, somebody may have made our folder first, or a link in its place: it is not used."""
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    memory, elsewhere = tmp_path / "memory", tmp_path / "elsewhere"
    memory.mkdir(mode=0o777)
    elsewhere.mkdir(mode=0o777)
    (memory / f"autoresume-{os.getuid()}").symlink_to(elsewhere)
    env = environment(AUTORESUME_MEMORY=str(memory), AUTORESUME_RUN_DIR=str(tmp_path / "run"))
    command = [sys.executable, "-m", "autoresume", "run", "--once", str(script)]
    done = warm.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "autoresume-" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(elsewhere.iterdir()) == []
