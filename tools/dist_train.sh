#!/usr/bin/env bash
# Train on several GPUs of one machine or of several, with the arguments and variables of mmdetection's script.
#
#   tools/dist_train.sh CONFIG GPUS [train.py's arguments]
#
# GPUS is the number of processes on this machine. Settings: NNODES (default 1), NODE_RANK (default 0), MASTER_ADDR
# (default 127.0.0.1), PORT (default 29500), PYTHON (default .venv/bin/python, or else python).
set -euo pipefail

if [ "$#" -lt 2 ]; then
  echo "error: call it as: tools/dist_train.sh CONFIG GPUS [ARGUMENTS]." >&2
  exit 2
fi
config=$1 gpus=$2
shift 2
[ -x .venv/bin/python ] && default=.venv/bin/python || default=python

exec "${PYTHON:-$default}" -m torch.distributed.run \
  --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$gpus" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}" \
  "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
