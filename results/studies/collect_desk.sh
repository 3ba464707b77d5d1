#!/usr/bin/env bash
# Copy the training curves of the desk study, and some pictures of its benchmarks, into results/.
set -euo pipefail
shopt -s nullglob

for summary in runs/desk_*/summary.json; do
    run="$(dirname "$summary")"
    python -m results.collect --run "$run" --name "$(basename "$run")"
done
# Folders are NAME-HASH/TASK/seed0. Of two checkpoints of one name the newer one comes last, and stays.
folders=(runs/transfer/{random-resnet18-seed=0,desk_r0_s0,desk_r1_s0}-*/fashion-f*/seed0/vis)
[ ${#folders[@]} = 0 ] || find "${folders[@]}" -maxdepth 0 -printf '%T@ %h\n' | sort -n | cut -d' ' -f2- |
    while read -r run; do
        task="$(dirname "$run")" checkpoint="$(basename "$(dirname "$(dirname "$run")")")"
        python -m results.collect --run "$run" --name "${checkpoint%-*}" --task "$(basename "$task")"
    done
