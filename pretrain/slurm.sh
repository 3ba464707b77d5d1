#!/usr/bin/env bash
# Pre-training on several machines through Slurm: one torchrun agent per machine starts one process per GPU.
#   sbatch pretrain/slurm.sh --recipe imagenet_800ep --data.train /data/imagenet/train --labels.ratio 0.1
#   sbatch --nodes=4 --partition=gpu --account=me pretrain/slurm.sh --recipe ...    sbatch's options come first
# Submit it from the project's folder after `bash setup.sh`. Folder and environment must be on a file system that the
# machines share. Before its time limit, or when it is preempted, the job saves its state and is requeued; a job of the
# same --name continues from there, also one with --resume FILE, for which FILE is only the start.
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
#SBATCH --signal=B:USR1@180
set -euo pipefail

# Several jobs may share a machine, so each has its own port.
export NNODES="$SLURM_NTASKS" RDZV
RDZV="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))"
echo "$(date -Is) job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $NNODES machines, rendezvous at $RDZV"

requeue=
# shellcheck disable=SC2317,SC2329 # called by the trap
save_and_requeue() {
    requeue=1
    echo "$(date -Is) the time limit is near: saving"
    scancel --signal=TERM "$SLURM_JOB_ID.0"
}
trap save_and_requeue USR1

srun --kill-on-bad-exit=1 bash pretrain/run.sh "$@" &
step=$! status=0
wait "$step" || status=$?
if [ -n "$requeue" ]; then # the trap interrupted the first wait
    status=0
    wait "$step" || status=$?
    [ "$status" = 0 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
