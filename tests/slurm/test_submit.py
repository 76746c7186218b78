"""Submitting: what reaches sbatch, what is kept, and what is said when Slurm refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoresume.slurm import submit
from autoresume.slurm.commands import SlurmMissing, SlurmRefused
from tests.slurm.conftest import Programs

REFUSED = (
    'echo "sbatch: error: invalid partition specified: gpux" >&2;'
    ' echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2; exit 1'
)


def sbatch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`autoresume sbatch`, run in `folder`."""
    (folder / "train.py").touch()
    command = [sys.executable, "-m", "autoresume", "sbatch", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_what_is_submitted_is_kept(programs: Programs, tmp_path: Path) -> None:
    """sbatch reads the very script that is kept in the run directory, and its number comes back."""
    programs.make("sbatch", f'cat "$1" > {tmp_path}/seen; echo "Submitted batch job 71"')
    kept = tmp_path / "0001.sh"
    assert (
        submit.submit({"nodes": "2", "hold": True, "output": "logs/%j.log"}, ["srun true", 'exit "$?"'], kept) == "71"
    )
    assert (tmp_path / "seen").read_text() == kept.read_text()
    assert kept.read_text().splitlines()[0] == "#!/bin/bash"
    assert {"#SBATCH --nodes=2", "#SBATCH --hold", "srun true"} <= set(kept.read_text().splitlines())


def test_nothing_is_set_that_nobody_asked_for(tmp_path: Path) -> None:
    """No time limit of submitit's, no signal, no key of its own."""
    lines = submit.text({"output": "a.log"}, ["true"]).splitlines()
    assert lines[0] == "#!/bin/bash"
    assert [line for line in lines[1:] if line] == [
        "#SBATCH --job-name=autoresume",
        "#SBATCH --nodes=1",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=a.log",
        "true",
    ]


def test_a_refusal_is_in_slurms_words(programs: Programs, tmp_path: Path) -> None:
    """All of them; the script is kept, to try it by hand."""
    programs.make("sbatch", REFUSED)
    with pytest.raises(SlurmRefused) as found:
        submit.submit({}, ["true"], tmp_path / "0001.sh")
    assert str(found.value) == (
        "sbatch refused: invalid partition specified: gpux; Batch job submission failed: Invalid partition name "
        f"specified. Nothing was submitted; the script is in {tmp_path}/0001.sh"
    )
    assert (tmp_path / "0001.sh").exists()


def test_without_slurm(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and makes nothing; a dry run needs none."""
    monkeypatch.setenv("PATH", str(programs.folder))
    with pytest.raises(SlurmMissing, match="no sbatch on this machine"):
        submit.submit({}, ["true"], tmp_path / "0001.sh")
    done = sbatch(tmp_path, "train.py")
    assert (done.returncode, "there is no Slurm on this machine" in done.stderr) == (1, True)
    assert sbatch(tmp_path, "--dry-run", "train.py").stdout.startswith("#!/bin/bash\n")
    assert not (tmp_path / "runs").exists()


def test_a_submission_is_written_down(programs: Programs, tmp_path: Path) -> None:
    """Job, options, script and arguments; and a second job of the run is refused while the first one is there."""
    programs.make("sbatch", 'echo "Submitted batch job 71"')
    done = sbatch(tmp_path, "--json", "-N2", "--run-dir=run", "train.py", "-h", "--lr", "1")
    assert json.loads(done.stdout) == {"job": "71", "run": f"{tmp_path}/run"}, done.stderr
    record = json.loads((tmp_path / "run/submissions/0001.json").read_text())
    assert (record["job"], record["options"], record["arguments"]) == ("71", {"nodes": "2"}, ["-h", "--lr", "1"])
    assert "train.py -h --lr 1" in (tmp_path / "run/submissions/0001.sh").read_text()
    programs.make("scontrol", "echo 'JobId=71 JobName=a UserId=me(1) JobState=PENDING Reason=Priority Restarts=0'")
    again = sbatch(tmp_path, "--run-dir=run", "train.py")
    assert again.returncode == 1
    assert "job 71 of this run is pending. It goes on by itself" in again.stderr
    assert sbatch(tmp_path, "--run-dir=run", "--again", "train.py").returncode == 0
    assert (tmp_path / "run/submissions/0002.sh").exists()
    assert len(programs.calls("sbatch")) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes=2"], "which script?"),
        (["nowhere.py"], "there is no script 'nowhere.py' in"),
        (["--nproc=two", "train.py"], "--nproc two: give a number"),
        (["--env=1A=b", "train.py"], "--env 1A=b: give NAME=VALUE"),
        (["--budget=eror=1", "--dry-run", "train.py"], "there is no cause 'eror'"),
        (["--successor", "--array=1-2", "train.py"], "each task would submit the whole array again"),
        (["--nodee=1", "train.py"], "did you mean --node"),
    ],
)
def test_what_can_not_be_submitted(tmp_path: Path, words: list[str], said: str) -> None:
    """Is said in words, before anything is made."""
    done = sbatch(tmp_path, *words)
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
