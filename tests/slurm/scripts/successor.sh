#!/bin/bash

#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=logs/%j.log
#SBATCH --requeue

export AUTORESUME_RUN_DIR=/scratch/ada/runs/train
folder="$AUTORESUME_RUN_DIR/jobs/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
job="${job:-$SLURM_JOB_ID}"
if [ ! -e /scratch/ada/runs/train/submissions/0001.sh ] || ! mkdir -p "$folder"; then
    echo "autoresume: $(hostname) does not see, or can't write to, $AUTORESUME_RUN_DIR:" \
        "the run directory must lie on a file system that all nodes share (--run-dir)" >&2
    exit 1
fi
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
successor="$AUTORESUME_RUN_DIR/jobs/$SLURM_JOB_ID-successor"  # one for all lives of this job
[ -s "$successor" ] || sbatch --parsable --dependency="afterany:$SLURM_JOB_ID" \
    /scratch/ada/runs/train/submissions/0001.sh > "$successor" || exit 1
AUTORESUME_SUCCESSOR=$(cut -d ";" -f 1 "$successor")
export AUTORESUME_SUCCESSOR

# The shell outlives the step, to carry out what the daemon decided. A signal for it alone (--signal=B:) is
# passed on to the daemons.
step=
trap : TERM
trap '[ -z "$step" ] || kill -USR1 "$step"' USR1 USR2
srun --kill-on-bad-exit=0 --export=ALL autoresume node -- python train.py &
step=$!
while wait "$step"; code=$?; kill -0 "$step" 2>/dev/null; do :; done

if [ -e "$folder/done" ]; then
    scancel "$AUTORESUME_SUCCESSOR"
fi
exit "$code"
