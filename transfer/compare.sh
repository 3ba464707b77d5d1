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
exec "$environment/bin/python" -m transfer.compare "$@"
