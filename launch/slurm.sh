#!/usr/bin/env bash
# GPUs of a SLURM cluster, one process for each GPU.
#
#   sbatch --nodes=4 launch/slurm.sh --config=xar_b --workdir=/shared/runs/xar_b ...
#
# JAX reads SLURM's own variables to find the other processes. Two minutes before the time limit, and
# when the job is preempted, every process gets SIGTERM: it saves and ends with code 42, and the job
# is put back into the queue; so it is after a stall (43) and after the death of a node (134, 137).
#SBATCH --job-name=jaxar
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [[ -z ${SLURM_JOB_ID:-} || $# -eq 0 ]]; then
  echo "usage: sbatch [--nodes=N] launch/slurm.sh --config=NAME --workdir=SHARED_FOLDER ..." >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"

code=0
srun --kill-on-bad-exit=1 .venv/bin/python -m jaxar.main "$@" || code=$?
case $code in
  42 | 43 | 134 | 137)
    echo "ended with code $code: back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit "$code"
