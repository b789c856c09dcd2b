#!/usr/bin/env bash
# One task per GPU; Lightning reads ranks and addresses from SLURM's variables. Arguments go to `cli.py fit`:
#   sbatch --nodes 2 docs/examples/train_slurm.sh -c configs/grpo/qwen2_5_vl_7b.yaml
# When it is submitted again, it continues from the newest last.ckpt.
#SBATCH --job-name=videorft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300
set -euo pipefail
cd "$SLURM_SUBMIT_DIR" # the repository

# --kill-on-bad-exit: when the watchdog ends one rank, srun ends the others. --label: every line begins with its rank.
status=0
srun --kill-on-bad-exit=1 --label \
  "${PYTHON:-python}" cli.py fit "$@" \
  -c "${TRAINER:-configs/trainer/fsdp_multinode.yaml}" \
  --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --ckpt_path last || status=$?

# 143: a signal ended a step and its checkpoint is written, so the same job can go on.
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
