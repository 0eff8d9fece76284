#!/usr/bin/env bash
# Test on several GPUs of one machine or of several, with the arguments and variables of mmdetection's script.
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [test.py's arguments]
#
# GPUS is the number of processes on this machine. Settings: NNODES (default 1), NODE_RANK (default 0), MASTER_ADDR
# (default 127.0.0.1), PORT (default 29500), PYTHON (default .venv/bin/python, or else python).
set -euo pipefail

if [ "$#" -lt 3 ]; then
  echo "error: call it as: tools/dist_test.sh CONFIG CHECKPOINT GPUS [ARGUMENTS]." >&2
  exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
[ -x .venv/bin/python ] && default=.venv/bin/python || default=python

exec "${PYTHON:-$default}" -m torch.distributed.run \
  --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$gpus" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}" \
  "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
