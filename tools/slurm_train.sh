#!/usr/bin/env bash
# Train on one or several nodes of a Slurm cluster: srun starts one torchrun per node.
#
#   sbatch --nodes 2 --gpus-per-node 8 tools/slurm_train.sh CONFIG WORK_DIR [train.py's arguments]
#
# Exits with the code of the rank that failed first; SIGTERM of Slurm saves a checkpoint first.
# All nodes must have access to the work dir. Settings: PROCESSES per node (default: its GPUs, or 1),
# RESTARTS (default 0), PORT (default: by the job), PYTHON (default .venv/bin/python).
#SBATCH --job-name=mmattn
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
set -euo pipefail

if [ "$#" -lt 2 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: call it as: sbatch tools/slurm_train.sh CONFIG WORK_DIR [ARGUMENTS]." >&2
  exit 2
fi
config=$1 work_dir=$2
shift 2
python=${PYTHON:-.venv/bin/python}
rm -f "$work_dir/exit_status.json"  # of a previous run
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --ntasks-per-node=1 --kill-on-bad-exit=0 "$python" -m torch.distributed.run \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}" \
  --max-restarts "${RESTARTS:-0}" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
  --rdzv-endpoint "$head:${PORT:-$((20000 + SLURM_JOB_ID % 20000))}" \
  tools/train.py "$config" --work-dir "$work_dir" --launcher pytorch --resume auto "$@" || true
exec "$python" tools/exit_code.py "$work_dir"
