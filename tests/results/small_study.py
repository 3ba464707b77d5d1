"""A study whose commands take a fraction of a second: they train, measure, skip and resume as the real ones do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from results.record import read_all

ROOT = Path(__file__).parents[2]
TRAIN = """
while [ $# -gt 1 ]; do
    case $1 in
        --runs) runs=$2;; --name) name=$2;; --seconds) seconds=$2;; *) echo "unknown option $1" >&2; exit 2;;
    esac
    shift 2
done
mkdir -p "$runs/$name"
trap 'echo saved >>"$runs/$name/saved"; exit 143' TERM
echo "started $(env | grep 4711)" >>"$runs/$name/starts"
[ -e "$runs/$name/summary.json" ] && exit 0
sleep "$seconds" & wait $!
echo "$name" >"$runs/$name/part"; mv "$runs/$name/part" "$runs/$name/last.pth"
echo trained >>"$runs/$name/trained"
echo '{}' >"$runs/$name/summary.json"
"""

MEASURE = '''
"""Write a record unless this very checkpoint is on record, and the receipt in any case."""
import argparse, hashlib, json, os, time
from pathlib import Path
from results.record import Record, read_all, write
p = argparse.ArgumentParser()
for name, kind in dict(ckpt=str, seeds=int, records=Path, receipt=Path, seconds=float, task=str).items():
    p.add_argument(f"--{name}", type=kind, required=True)
p.add_argument("--silent", action="store_true")
o = p.parse_args()
sha256 = hashlib.sha256(Path(o.ckpt).read_bytes() if Path(o.ckpt).exists() else o.ckpt.encode()).hexdigest()
backbone = {"path": o.ckpt, "sha256": sha256, "format": "small", "arch": "none"}
top1 = (int(sha256[:6], 16) + o.seeds) % 1000 / 1000
label = os.environ["UNIMOCO_JOB"]
r = Record(o.ckpt, backbone, 0, o.task, {}, "small", o.seeds, {"top1": top1}, "top1", {}, {"job": label})
if not any(r.matches(other) for other in read_all(o.records)):
    time.sleep(o.seconds)
    write(o.records, r)
    with open("measured.txt", "a") as file:
        variables = [os.environ.get(name, "-") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
        print(o.task, o.ckpt, o.seeds, *variables, time.time() - o.seconds, time.time(), file=file)
if not o.silent:
    part = o.receipt.with_suffix(".part")
    part.write_text(json.dumps([str(o.records / r.path)]))
    os.replace(part, o.receipt)
'''


def write(folder: Path, **changes: Any) -> Path:
    """Write commands and study file into a folder.

    Args:
        folder: where the study is to run.
        changes: replace entries of the file; "tasks.knn.seeds" is written tasks__knn__seeds, None deletes one.
    """
    (folder / "train.sh").write_text(TRAIN)
    (folder / "measure.py").write_text(MEASURE)
    tree: dict[str, Any] = {
        "pretrain": "bash train.sh",
        "records": "records",
        "checkpoints": {
            "ours": {"name": "r{ratio}", "over": {"ratio": [0, 1]}, "pretrain": "--seconds 0.1", "minutes": 3},
            "random": {"name": "random", "ckpt": "random:resnet18?seed=0"},
        },
        "tasks": {
            name: {"command": f"python measure.py --seconds 0.05 --task {name}", "minutes": 2}
            for name in ("knn", "linear")
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        entry = tree
        for name in parents:
            entry = entry[name]
        entry[last] = value
        if value is None:
            del entry[last]
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the study in a process of its own."""
    command = [sys.executable, "-m", "results.study", "--study", "small.yaml", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the study to its end: exit status, stdout, stderr."""
    process = start(folder, *arguments, **environment)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, err = process.communicate()
        raise AssertionError(f"the study hangs: {out}{err}") from None
    return process.returncode, out, err


def records(folder: Path) -> list[tuple[Any, ...]]:
    """What is on record, sorted."""
    return sorted((r.task, r.backbone["path"], r.seed, r.metrics["top1"]) for r in read_all(folder / "records"))


def measured(folder: Path) -> list[list[str]]:
    """The measurements that were made, in order: task, checkpoint, seed, devices, threads, begin, end."""
    file = folder / "measured.txt"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def receipts(folder: Path) -> dict[str, Any]:
    """Job -> content of its receipt."""
    root = folder / "runs/study/small"
    files = [*root.glob("*/*.json"), *root.glob("*/*.done")]
    return {str(file.relative_to(root).with_suffix("")): json.loads(file.read_text() or "[]") for file in files}


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until condition() is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
