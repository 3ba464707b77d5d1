#!/usr/bin/env bash
# UniMoCo pre-training: sets up the environment where it is missing, then trains.
#   bash pretrain/run.sh                                     Fashion-MNIST, five minutes on two CPU cores
#   bash pretrain/run.sh --data.train /data/photos           your own images, with the recipe my_folder
#   bash pretrain/run.sh --recipe imagenet_800ep --data.train /data/imagenet/train --labels.ratio 0.1
#   bash pretrain/run.sh --help                              every option
# Environment variables:
#   NPROC=8       processes on this machine, one per device (default: the number of GPUs, else 1)
#   NNODES=2      machines; then also RDZV=host:port, the same on each
#   DRY_RUN=1     print the command, run nothing
# A stop by SIGTERM or SIGINT (Ctrl-C) saves the state and ends with status 143 or 130; a mistake with 2.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Started elsewhere: given paths are relative to there; the default folders and the packages are the project's.
[ "$PWD" -ef "$root" ] || set -- --runs "$root/runs" --data.root "$root/data" "$@"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1

# On a CPU, glibc returns large blocks to the system after every operation; keeping them saves 10 % of a step's time.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-33554432}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"

# torchrun waits so many seconds for its processes to save their state; slurm.sh asks for a notice of 180.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-170}"

environment="$(bash "$root/setup.sh")"
[ "${environment:0:1}" = / ] || environment="$root/$environment"
python="$environment/bin/python"
case " $* " in *" --help "* | *" --dry-run"*) NPROC=1 NNODES=1 ;; esac # they need no GPU, and plan for any number
nproc="${NPROC:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}"
nnodes="${NNODES:-1}"

if [[ " $* " != *" --recipe"* ]]; then # a bare run is the demo; your own images get the recipe that is meant for them
    recipe=fashion
    if [[ " $* " == *" --data.train"* ]]; then
        recipe=my_folder
        echo "no --recipe given: using my_folder (pretrain/recipes/my_folder.yaml) for --data.train" >&2
    fi
    set -- --recipe "$recipe" "$@"
fi
if [ "$nproc" = 1 ] && [ "$nnodes" = 1 ]; then
    command=("$python" -m pretrain.train "$@")
else
    rendezvous=(--standalone)
    [ "$nnodes" = 1 ] || rendezvous=(--nnodes "$nnodes" --rdzv-backend c10d --rdzv-endpoint "${RDZV:?set RDZV=host:port}")
    command=("$python" -m pretrain.launch "${rendezvous[@]}" --nproc-per-node "$nproc" -m pretrain.train "$@")
fi
if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
exec "${command[@]}"
