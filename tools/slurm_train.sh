#!/usr/bin/env bash
# Train on a Slurm cluster, with the arguments and variables of mmdetection's script: srun starts one torchrun per node.
#
#   GPUS=16 tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [train.py's arguments]
#
# Exits with the code of the rank that failed first; SIGTERM of Slurm saves a checkpoint first, which the next call resumes.
# All nodes must have access to the work dir. Settings: GPUS in all (default 8), GPUS_PER_NODE (default 8), CPUS_PER_TASK for
# each GPU (default 5), SRUN_ARGS for srun, RESTARTS (default 0), PORT (default: by the job), PYTHON (default
# .venv/bin/python, or else python).
set -euo pipefail

if [ "$#" -lt 4 ]; then
  echo "error: call it as: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [ARGUMENTS]." >&2
  exit 2
fi
partition=$1 job_name=$2 config=$3 work_dir=$4
shift 4
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
[ "$per_node" -le "$gpus" ] || per_node=$gpus
if [ $((gpus % per_node)) -ne 0 ]; then
  echo "error: GPUS=$gpus is no multiple of GPUS_PER_NODE=$per_node: every node starts as many processes." >&2
  exit 2
fi
[ -x .venv/bin/python ] && default=.venv/bin/python || default=python
python=${PYTHON:-$default} tools=$(dirname "$0")
rm -f "$work_dir/exit_status.json"  # of a previous run

# On a node: the first one of the job is where all meet.
torchrun='
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec "$0" -m torch.distributed.run --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$PER_NODE" \
  --max-restarts "${RESTARTS:-0}" --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
  --rdzv-endpoint "$head:${PORT:-$((20000 + SLURM_JOB_ID % 20000))}" "$@"'

# shellcheck disable=SC2086  # SRUN_ARGS are several
PER_NODE=$per_node srun -p "$partition" --job-name="$job_name" --gres="gpu:$per_node" \
  --nodes="$((gpus / per_node))" --ntasks-per-node=1 --cpus-per-task="$((${CPUS_PER_TASK:-5} * per_node))" \
  --kill-on-bad-exit=0 --signal=TERM@120 ${SRUN_ARGS:-} \
  bash -c "$torchrun" "$python" \
  "$tools/train.py" "$config" --work-dir "$work_dir" --launcher pytorch --resume auto "$@" || true
exec "$python" "$tools/exit_code.py" "$work_dir"
