#!/usr/bin/env bash
# One agent of a run on several machines. Start it on every machine with the same HOST, NODES and RUN_ID:
#   HOST=node0 NODES=2 RUN_ID=grpo1 docs/examples/train_torchrun.sh -c configs/grpo/qwen2_5_vl_7b.yaml
# HOST is one of the machines; its port 29500 must be reachable from the others. Arguments go to `cli.py fit`. A second
# start continues from the newest last.ckpt.
set -euo pipefail
cd "$(dirname "$0")/../.."

: "${HOST:?name of one of the machines}" "${NODES:?number of machines}" "${RUN_ID:?the same word on all machines}"
GPUS="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"

exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "$NODES" --nproc-per-node "$GPUS" \
  --rdzv-backend c10d --rdzv-endpoint "$HOST:${PORT:-29500}" --rdzv-id "$RUN_ID" \
  --log-dir "${LOGS:-runs/logs/$RUN_ID}" --redirects 3 --tee 3 \
  cli.py fit "$@" \
  -c "${TRAINER:-configs/trainer/fsdp_multinode.yaml}" \
  --trainer.num_nodes "$NODES" --trainer.devices "$GPUS" --ckpt_path last
