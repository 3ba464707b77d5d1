"""A study whose commands take a fraction of a second: they train, measure, skip and resume as the real ones do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from results.record import read

TRAIN = """
while [ $# -gt 1 ]; do
    case $1 in --runs) runs=$2;; --name) name=$2;; --seconds) seconds=$2;; *) echo "no $1" >&2; exit 2;; esac
    shift 2
done
mkdir -p "$runs/$name"
trap 'echo saved >>"$runs/$name/saved"; exit 143' TERM
echo started >>"$runs/$name/starts"
sleep "$seconds" & wait $!
[ -e "$runs/$name/last.pth" ] || { echo "$name" >"$runs/$name/part"; mv "$runs/$name/part" "$runs/$name/last.pth"; }
echo '{}' >"$runs/$name/summary.json"
"""

MEASURE = '''
"""CKPT SEED RECORDS SECONDS TASK: appends a Record, unless it is there."""
import hashlib, os, sys, time
from pathlib import Path
from results.record import Record, append, read
ckpt, seed, records, seconds, task = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
sha256 = hashlib.sha256(Path(ckpt).read_bytes() if Path(ckpt).exists() else ckpt.encode()).hexdigest()
with open("started.txt", "a") as file:
    print(task, ckpt, seed, os.environ.get("CUDA_VISIBLE_DEVICES"), time.time(), file=file)
if not any(record.key[:3] == (sha256, task, seed) for record in read(records)):
    time.sleep(seconds)
    top1 = (int(sha256[:6], 16) + seed) % 1000 / 1000
    checkpoint = {"sha256": sha256, "path": ckpt, "format": "small", "arch": "none"}
    append(records, Record(task, "in small", checkpoint, seed, {"top1": top1}, {"seconds": seconds}, {}, {}))
'''


def write(folder: Path, **changes: Any) -> Path:
    """Writes commands and study file into a folder.

    Args:
        folder: where the study is to run.
        changes: replace entries of the file; "tasks.knn.seeds" is written tasks__knn__seeds, None takes one away.
    """
    (folder / "train.sh").write_text(TRAIN)
    (folder / "measure.py").write_text(MEASURE)
    tree: dict[str, Any] = {
        "pretrain": "bash train.sh",
        "checkpoints": {
            "ours": {"name": "r{ratio}", "over": {"ratio": [0, 1]}, "pretrain": "--seconds 0.1", "minutes": 0.1},
            "random": {"name": "random", "ckpt": "random:resnet18?seed=0"},
        },
        "tasks": {
            name: {
                "task": name, "command": f"python measure.py {{ckpt}} {{seed}} {{records}} 0.05 {name}",
                "records": f"{name}.jsonl", "seeds": [0, 1], "minutes": 0.1,
            }
            for name in ("knn", "linear")
        },
    }  # fmt: skip
    for path, value in changes.items():
        entry, *_ = _walk(tree, path.split("__")[:-1])
        if value is None:
            del entry[path.split("__")[-1]]
        else:
            entry[path.split("__")[-1]] = value
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def _walk(tree: dict[str, Any], path: list[str]) -> list[dict[str, Any]]:
    for name in path:
        tree = tree[name]
    return [tree]


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts the study in a process of its own."""
    command = [sys.executable, "-m", "results.study", "--study", "small.yaml", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Runs the study to its end: exit status, stdout, stderr."""
    process = start(folder, *arguments, **environment)
    try:
        out, err = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the study hangs: {out}{err}") from None
    return process.returncode, out, err


def records(folder: Path) -> list[tuple[Any, ...]]:
    """What is on record, in no order."""
    return sorted(
        (r.task, r.checkpoint["path"], r.seed, r.metrics["top1"]) for f in folder.glob("*.jsonl") for r in read(f)
    )


def starts(folder: Path) -> list[list[str]]:
    """The measurements that were started, in order: task, checkpoint, seed, devices, time."""
    file = folder / "started.txt"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def state(folder: Path) -> list[dict[str, Any]]:
    """Every line of the state file."""
    return [json.loads(line) for line in (folder / "runs/study/small/state.jsonl").read_text().splitlines()]
