"""The batch script that `autoresume sbatch` submits.

Law: made from values alone. What it does besides starting the daemons is what only the batch shell can do: it lives
outside of containers, and after the daemons.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """What the script starts. `run_folder` is absolute."""

    run_folder: str
    script: str
    arguments: Sequence[str] = ()
    ranks: int = 1
    nodes: str = "1"
    array: bool = False
    autoresume: Sequence[str] = ("autoresume",)
    """How the command is called on the nodes."""
    python: str = "python"
    container: Sequence[str] = ()
    """Words before the daemon's command, such as `apptainer exec --nv image.sif`."""
    setup: Sequence[str] = ()
    """Lines of shell, run before it."""
    environment: Sequence[tuple[str, str]] = ()
    node_options: Sequence[str] = ()
    srun_options: Sequence[str] = ()
    submitted: str | None = None
    """Path of this very script in the run directory."""
    successor: bool = False
    """Jobs follow each other instead of being requeued."""
    rehearse: bool = False
    """The first steps of a new run are drilled on one of the nodes before it is begun."""


def body(launch: Launch) -> list[str]:
    """The lines after the #SBATCH directives."""
    folder = shlex.quote(launch.run_folder) + ("/task-$SLURM_ARRAY_TASK_ID" if launch.array else "")
    seen = f"[ ! -e {shlex.quote(launch.submitted)} ] || " if launch.submitted else ""
    lines = [
        f"export AUTORESUME_RUN_DIR={folder}",
        'folder="$AUTORESUME_RUN_DIR/jobs/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"',
        'job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"',
        'job="${job:-$SLURM_JOB_ID}"',
        f'if {seen}! mkdir -p "$folder"; then',
        '    echo "autoresume: $(hostname) does not see, or can\'t write to, $AUTORESUME_RUN_DIR:" \\',
        '        "the run directory must lie on a file system that all nodes share (--run-dir)" >&2',
        "    exit 1",
        "fi",
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
    ]
    if launch.container:
        lines.append('AUTORESUME_JOB_END=$(squeue --noheader --job "$SLURM_JOB_ID" --format %e)')
        lines.append("export AUTORESUME_JOB_END  # inside of the container nobody can ask Slurm for it")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in launch.environment]
    lines += launch.setup
    if launch.successor and launch.submitted is not None:
        lines += [
            'successor="$AUTORESUME_RUN_DIR/jobs/$SLURM_JOB_ID-successor"  # one for all lives of this job',
            '[ -s "$successor" ] || sbatch --parsable --dependency="afterany:$SLURM_JOB_ID" \\',
            f'    {shlex.quote(launch.submitted)} > "$successor" || exit 1',
            'AUTORESUME_SUCCESSOR=$(cut -d ";" -f 1 "$successor")',
            "export AUTORESUME_SUCCESSOR",
        ]
    if launch.rehearse:
        lines.append(f"{_rehearsal(launch)} || exit 1")
    lines += [
        "",
        "# The shell outlives the step, to carry out what the daemon decided. A signal for it alone (--signal=B:) is",
        "# passed on to the daemons.",
        "step=",
        "trap : TERM",
        'trap \'[ -z "$step" ] || kill -USR1 "$step"\' USR1 USR2',
        f"{srun(launch)} &",
        "step=$!",
        'while wait "$step"; code=$?; kill -0 "$step" 2>/dev/null; do :; done',
        "",
    ]
    return [*lines, *_what_follows(launch), 'exit "$code"']


def _what_follows(launch: Launch) -> list[str]:
    """Behind the daemons: what they have decided is carried out."""
    if launch.successor:
        return ['if [ -e "$folder/done" ]; then', '    scancel "$AUTORESUME_SUCCESSOR"', "fi"]
    return [
        "# A daemon that was killed itself has decided nothing. That is forgiven five times.",
        'if [ "$code" -eq 137 ] && [ ! -e "$folder/done" ]; then',
        '    touch "$folder/lost"',
        '    [ "$(find "$AUTORESUME_RUN_DIR/jobs" -name lost | wc -l)" -gt 5 ] || touch "$folder/requeue"',
        "fi",
        "for pause in 0 5 15 30 60; do  # the controller may be away",
        '    [ -e "$folder/requeue" ] || break',
        '    sleep "$pause"',
        '    state=$(scontrol -o show job "$job") || continue',
        '    case "$state" in *" JobState=RUNNING "*) ;; *) break ;; esac',
        '    scontrol requeue "$job" && break',
        '    scontrol update job="$job" requeue=1',
        "done",
    ]


def srun(launch: Launch) -> str:
    """The line that starts a daemon on each node, and the ranks below it."""
    # The daemons need what was exported above, also in a job that was submitted with --export=NONE.
    words = ["srun", "--kill-on-bad-exit=0", "--export=ALL", *launch.srun_options, *launch.container]
    words += [*launch.autoresume, "node", *launch.node_options, "--"]
    if launch.ranks > 1 or launch.nodes != "1":
        words += ["torchrun", f"--nproc-per-node={launch.ranks}"]
    else:
        words += [launch.python]
    return shlex.join([*words, launch.script, *launch.arguments])


def _rehearsal(launch: Launch) -> str:
    """A drill on one node; a run that has a checkpoint is not drilled."""
    words = ["srun", "--nodes=1", "--ntasks=1", "--export=ALL", *launch.container]
    words += [*launch.autoresume, "rehearse", f"--nproc={launch.ranks}", launch.script, *launch.arguments]
    return shlex.join(words)
