#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-11%12
#SBATCH --chdir='/shared/my root/slurm/0123456789ab'
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:41_0:41_3
#SBATCH --error=batch.log
#SBATCH --export=ALL
#SBATCH --gpus-per-node=4
#SBATCH --job-name=orch-0123456789ab
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nice=100
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=batch.log
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=240

# setup
RUN_DIR="$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" '/shared/my root/slurm/0123456789ab/index')"
cd "$RUN_DIR" || exit 2
export ORCH_TOKEN=0123456789ab ORCH_SIGNAL_DELAY_S=90
export PYTHONSAFEPATH=1 PYTHONPATH="$RUN_DIR/code" PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8
export SRUN_CPUS_PER_TASK=8
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
exec srun --unbuffered --kill-on-bad-exit=1 --open-mode=append --output="logs/%A_%a.%t.log" --error="logs/%A_%a.%t.log" env --block-signal=USR2 --block-signal=TERM /venv/bin/python -m jobs "$RUN_DIR"
