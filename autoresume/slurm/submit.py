"""Submitting a batch script through submitit.

Law: submitit writes the script's head and calls sbatch; this is the only module that knows it. The script is kept
whatever Slurm answers.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from autoresume.slurm.commands import SlurmMissing, SlurmRefused, present

_LEFT_OUT = ("export SUBMITIT_EXECUTOR", "# command", "# Parameters")
_ITS_OWN = ("signal", "wckey", "time")
"""Directives that submitit sets unasked. Its signal would stop the job early: the daemon knows the time limit."""


class _Executor(SlurmExecutor):
    """submitit's, with a script of ours instead of a pickled function."""

    def __init__(self, folder: Path, directives: Mapping[str, str | bool]) -> None:
        super().__init__(folder)
        self.directives = dict(directives)

    @classmethod
    def affinity(cls) -> int:
        return 2  # whether there is Slurm was looked at before

    def _num_tasks(self) -> int:
        return 1  # Slurm counts them; submitit would make a handle for each

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its advice is for its own parameters
            text = super()._make_submission_file_text(command, uid)
        unasked = tuple(f"#SBATCH --{name}=" for name in _ITS_OWN if name not in self.directives)
        lines = [line for line in text.splitlines() if not line.startswith((*_LEFT_OUT, *unasked))]
        shown = [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
        return "\n".join(shown).rstrip() + "\n"


def _executor(folder: Path, directives: Mapping[str, str | bool]) -> _Executor:
    executor = _Executor(folder, directives)
    executor.update_parameters(
        use_srun=False,
        stderr_to_stdout=True,
        nodes=directives.get("nodes", 1),
        job_name=directives.get("job-name", "autoresume"),
        additional_parameters={name: value for name, value in directives.items() if name not in ("nodes", "job-name")},
    )
    return executor


def text(directives: Mapping[str, str | bool], body: Sequence[str]) -> str:
    """The whole batch script."""
    return _executor(Path("."), directives)._make_submission_file_text("\n".join(body), "")


def submit(directives: Mapping[str, str | bool], body: Sequence[str], kept: Path) -> str:
    """Submit, and keep the script at `kept`; the job's id. Raises SlurmMissing, SlurmRefused."""
    if not present("sbatch"):
        raise SlurmMissing("there is no sbatch on this machine. `autoresume run` trains here, without Slurm")
    kept.write_text(text(directives, body))
    try:
        # sbatch has read the script when it returns: what submitit keeps of its own is not needed.
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
            return str(_executor(Path(scratch), directives)._submit_command("\n".join(body)).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line.split("error: ", 1)[-1] for line in str(error).splitlines() if "error:" in line]
        raise SlurmRefused(
            f"sbatch refused: {'; '.join(lines) or error}. Nothing was submitted; the script is in {kept}"
        ) from None
