#!/usr/bin/env bash
# UniMoCo pre-training from nothing: sets up the environment where it is missing, then trains.
#   bash pretrain/run.sh                                     real images, five minutes on two CPU cores
#   bash pretrain/run.sh --recipe imagenet_800ep --data.train /data/imagenet/train --labels.ratio 0.1
#   bash pretrain/run.sh --help                              every option
# Environment variables:
#   NPROC=8       processes on this machine, one a device (default: the number of GPUs, else 1)
#   NNODES=2      machines; then also RDZV=host:port, the same on each
#   DRY_RUN=1     print the command, run nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# On a CPU, glibc hands large blocks back to the system after every operation; keeping them saves a tenth of a step.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-33554432}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"

python="$(bash setup.sh)/bin/python"
nproc="${NPROC:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}"
nnodes="${NNODES:-1}"

[[ " $* " == *" --recipe"* ]] || set -- --recipe fashion "$@"
if [ "$nproc" = 1 ] && [ "$nnodes" = 1 ]; then
    command=("$python" -m pretrain.train "$@")
else
    rendezvous=(--standalone)
    [ "$nnodes" = 1 ] || rendezvous=(--nnodes "$nnodes" --rdzv-backend c10d --rdzv-endpoint "${RDZV:?set RDZV=host:port}")
    command=("$python" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$nproc" -m pretrain.train "$@")
fi
if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
exec "${command[@]}"
