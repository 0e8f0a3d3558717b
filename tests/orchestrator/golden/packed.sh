#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --chdir='/shared/my root/slurm/0123456789ab'
#SBATCH --cpus-per-task=4
#SBATCH --error=batch.log
#SBATCH --export=ALL
#SBATCH --gpus-per-node=1
#SBATCH --job-name=orch-0123456789ab
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=batch.log
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
mapfile -t -s "$((SLURM_ARRAY_TASK_ID * 4))" -n 4 RUN_DIRS < '/shared/my root/slurm/0123456789ab/index'
[ "${#RUN_DIRS[@]}" -gt 0 ] || exit 2
export ORCH_TOKEN=0123456789ab ORCH_SIGNAL_DELAY_S=120
export PYTHONSAFEPATH=1 PYTHONPATH="${RUN_DIRS[0]}/code" PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8
export SRUN_CPUS_PER_TASK=4

# command
export SUBMITIT_EXECUTOR=slurm
exec srun --unbuffered --kill-on-bad-exit=1 --open-mode=append --output="%A_%a.log" --error="%A_%a.log" env --block-signal=USR2 --block-signal=TERM /venv/bin/python -m jobs.pack "${RUN_DIRS[@]}"
