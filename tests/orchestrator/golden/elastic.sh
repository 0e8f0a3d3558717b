#!/bin/bash

# Parameters
#SBATCH --array=0-0%1
#SBATCH --chdir='/shared/my root/slurm/0123456789ab'
#SBATCH --cpus-per-task=8
#SBATCH --error=batch.log
#SBATCH --export=ALL
#SBATCH --gpus-per-node=4
#SBATCH --job-name=orch-0123456789ab
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mincpus=32
#SBATCH --nodes=1-4
#SBATCH --open-mode=append
#SBATCH --output=batch.log
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=240

# setup
RUN_DIR="$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" '/shared/my root/slurm/0123456789ab/index')"
cd "$RUN_DIR" || exit 2
export ORCH_TOKEN=0123456789ab ORCH_SIGNAL_DELAY_S=120
export PYTHONSAFEPATH=1 PYTHONPATH="$RUN_DIR/code" PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8
export SRUN_CPUS_PER_TASK=8
for size in 4 8 16; do [ "$size" -gt "$((SLURM_JOB_NUM_NODES * 4))" ] || ORCH_TASKS="$size"; done

# command
export SUBMITIT_EXECUTOR=slurm
exec srun --nodes="$((ORCH_TASKS / 4))" --ntasks="$ORCH_TASKS" --ntasks-per-node=4 --unbuffered --kill-on-bad-exit=1 --open-mode=append --output="logs/%A_%a.%t.log" --error="logs/%A_%a.%t.log" env --block-signal=USR2 --block-signal=TERM /venv/bin/python -m jobs "$RUN_DIR"
