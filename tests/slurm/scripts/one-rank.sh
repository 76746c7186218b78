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
if ! mkdir -p "$folder"; then
    echo "autoresume: $(hostname) does not see, or can't write to, $AUTORESUME_RUN_DIR:" \
        "the run directory must lie on a file system that all nodes share (--run-dir)" >&2
    exit 1
fi
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# The shell outlives the step, to carry out what the daemon decided. A signal for it alone (--signal=B:) is
# passed on to the daemons.
step=
trap : TERM
trap '[ -z "$step" ] || kill -USR1 "$step"' USR1 USR2
srun --kill-on-bad-exit=0 --export=ALL autoresume node -- python train.py &
step=$!
while wait "$step"; code=$?; kill -0 "$step" 2>/dev/null; do :; done

# A daemon that was killed itself has decided nothing. That is forgiven five times.
if [ "$code" -eq 137 ] && [ ! -e "$folder/done" ]; then
    touch "$folder/lost"
    [ "$(find "$AUTORESUME_RUN_DIR/jobs" -name lost | wc -l)" -gt 5 ] || touch "$folder/requeue"
fi
for pause in 0 5 15 30 60; do  # the controller may be away
    [ -e "$folder/requeue" ] || break
    sleep "$pause"
    state=$(scontrol -o show job "$job") || continue
    case "$state" in *" JobState=RUNNING "*) ;; *) break ;; esac
    scontrol requeue "$job" && break
    scontrol update job="$job" requeue=1
done
exit "$code"
