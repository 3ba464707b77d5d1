#!/usr/bin/env bash
# The whole study from nothing: environment, data, pre-training, every benchmark, tables. The same command goes on
# where it was stopped; what is done is skipped.
#   bash results/reproduce.sh                   desk scale: some hours on two CPU cores
#   bash results/reproduce.sh --dry-run         the plan and its cost
#   bash results/reproduce.sh --study paper     the paper's experiment: GPUs, ImageNet, COCO, VOC
#   bash results/reproduce.sh --help            every option
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

env="$(bash setup.sh)"
export PATH="$env/bin:$PATH"
exec "$env/bin/python" -m results.study "$@"
