#!/usr/bin/env bash
# The whole study from nothing: environment, data, pre-training, every benchmark, tables. Stop it at any time: the same
# command resumes, and skips what is done. docs/study.md says more.
#   bash results/reproduce.sh                   small scale: some hours on two CPU cores
#   bash results/reproduce.sh --dry-run         its jobs and their cost
#   bash results/reproduce.sh --study paper     the paper's experiment: GPUs, ImageNet, COCO, VOC
#   bash results/reproduce.sh --help            every option
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

env="$(bash setup.sh)"
export PATH="$env/bin:$PATH" UNIMOCO_ENV="$env" # for the commands of the study
exec "$env/bin/python" -m results.study "$@"
