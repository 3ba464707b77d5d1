"""Seconds that `transfer/compare.sh --quick` takes for two checkpoints and 5,000 images of 224 px: a line in the docs.

    python tests/benchmarks/bench_quick.py --arch resnet18 resnet50

The images are JPEG files of smooth noise in ten classes, a fifth of them in val/. Features are computed anew each time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.files import append_text
from tests.benchmarks.bench_check import processor

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "benchmarks" / "quick.jsonl"
IMAGES, CLASSES, SIDE = 5_000, 10, 224


def write_images(folder: Path) -> None:
    """Write the data set: every class has a tint of its own, under noise."""
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        label = i % CLASSES
        coarse = rng.integers(0, 160, (14, 14, 3)) + (np.arange(3) == label % 3) * 10 * label
        pixels = cv2.resize(coarse.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        path = folder / ("val" if i % (5 * CLASSES) < CLASSES else "train") / f"class{label}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels + rng.integers(0, 24, pixels.shape, dtype=np.uint8))


def measure(arch: str, folder: Path) -> dict[str, object]:
    """Return what a comparison of a checkpoint with random weights of its network took."""
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(arch).state_dict(), folder / f"{arch}.pth")
    command = [sys.executable, "-m", "transfer.compare", "--ckpt", f"{arch}.pth", "random", "--data", "images"]
    command += ["--quick", "--device", "cpu", "--out", f"out-{arch}"]
    began, before = time.perf_counter(), os.times()
    subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    used = os.times()
    cpu = used.children_user + used.children_system - before.children_user - before.children_system
    return {
        "arch": arch, "images": IMAGES, "checkpoints": 2, "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(cpu, 1), "cores": len(os.sched_getaffinity(0)), "cpu": processor(),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> None:
    """Measure every network and append a line each to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"], help="networks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name) / "images")
        for arch in options.arch:
            row = measure(arch, Path(name))
            append_text(RECORD, json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
