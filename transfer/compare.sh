#!/usr/bin/env bash
# Compare checkpoints on your own images, boxes or masks. Stop it at any time: the same command resumes.
#   bash transfer/compare.sh --ckpt runs/birds/last.pth dino_r50.pth random torchvision:resnet50 --data /data/birds
#   bash transfer/compare.sh --help             every option
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
environment="$(bash "$root/setup.sh")"
[ "${environment:0:1}" = / ] || environment="$root/$environment"
# Paths are relative to where it is started; the packages are the project's.
export PATH="$environment/bin:$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
# On a CPU, glibc returns large blocks to the system after every operation; keeping them saves time (pretrain/run.sh).
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-33554432}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
exec "$environment/bin/python" -m transfer.compare "$@"
