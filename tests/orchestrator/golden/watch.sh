#!/bin/bash
#SBATCH --job-name=orchwatch-926f71d9e14b
#SBATCH --partition=cpu
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=2048M
#SBATCH --requeue
#SBATCH --signal=B:USR2@60
#SBATCH --open-mode=append
#SBATCH --output=watch.log
#SBATCH --error=watch.log
#SBATCH --export=ALL

export MLFLOW_TRACKING_URI='https://tracker.example/?a=b c'
export PYTHONUNBUFFERED=1
trap 'scontrol requeue "$SLURM_JOB_ID"' USR2
/venv/bin/python -c 'from orchestrator.cli.main import main; main()' --root '/shared/my root' watch --every 60 --halve-micro-batch table1 'it'"'"'s' &
watching=$!
while kill -0 "$watching" 2>/dev/null; do wait "$watching"; ended=$?; done
exit "$ended"
