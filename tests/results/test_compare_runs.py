"""Comparisons that are run as a user starts them: stopped and continued, and of boxes and masks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from results.record import read_all
from tests.transfer import own_sets
from tests.transfer.garments import write_garments

pytestmark = pytest.mark.nightly
ROOT = Path(__file__).parents[2]
CKPTS = ["--ckpt", "random:resnet18?seed=1", "random:resnet18", "--device", "cpu"]
MEASURED = ["checkpoint", "task", "fraction", "mean", "std", "low", "high", "measurements", "test_images", "images"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a comparison in a folder."""
    command = [sys.executable, "-m", "transfer.compare", *CKPTS, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)  # type: ignore[call-overload, no-any-return]


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    said = process.communicate(timeout=900)[0]
    assert process.returncode == status, said
    return said


@pytest.mark.fault("workers and signals", "study", "Ctrl-C in a comparison, and the same command again")
def test_a_stopped_comparison_goes_on_and_ends_with_the_same_numbers(tmp_path: Path) -> None:
    write_garments(tmp_path / "garments", 60, 20)
    words = [
        "--data",
        str(tmp_path / "garments"),
        "--tasks",
        "knn",
        "linear",
        "--size",
        "32",
        "--fractions",
        "0.5",
        "1",
    ]
    for name in ("stopped", "whole"):
        (tmp_path / name).mkdir()
    out = tmp_path / "stopped" / "runs" / "compare" / "garments"
    first = start(tmp_path / "stopped", *words)
    ends = time.monotonic() + 600
    while not (early := [*out.glob("compare/*/*.json")]):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < ends
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    finish(first, 128 + signal.SIGINT)
    early = [*out.glob("compare/*/*.json")]
    assert early
    assert not (out / "compare.csv").exists()
    done = {
        path: path.stat().st_mtime_ns for folder in ("compare", "records") for path in out.rglob(f"{folder}/*/*.json")
    }
    features = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "stopped" / "runs" / "features").glob("*.features")
    }
    finish(start(tmp_path / "stopped", *words))
    said = finish(start(tmp_path / "whole", *words))
    assert "tied" in said or "beats" in said
    for path, when in (done | features).items():
        assert path.stat().st_mtime_ns == when, f"{path} was made twice"
    tables = [
        pd.read_csv(tmp_path / name / "runs/compare/garments/compare.csv")[MEASURED] for name in ("stopped", "whole")
    ]
    pd.testing.assert_frame_equal(*tables)
    assert len(tables[0]) == 8, "two checkpoints, two benchmarks, two fractions"
    numbers = [len(read_all(tmp_path / name / "runs/compare/garments/records")) for name in ("stopped", "whole")]
    assert numbers[0] == numbers[1]


def test_boxes_and_masks_are_compared(tmp_path: Path) -> None:
    """One folder with both, of 30 images in all: two engines run in one study, and the page shows either."""
    root = own_sets.write_coco(tmp_path / "scenes", counts={"train": 24, "val": 6})
    for image in sorted((root / "images").iterdir()):
        pixels = cv2.imread(str(image))
        labels = np.zeros(pixels.shape[:2], np.uint8)
        for colour in range(3):
            labels[(pixels[..., colour] == 255) & (np.delete(pixels, colour, 2).max(2) == 0)] = colour + 1
        target = root / "masks" / image.name
        target.parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(target), labels)
    (root / "classes.txt").write_text("ground\nant\nbee\ncat\n")
    said = finish(start(tmp_path, "--data", "scenes", "--seeds", "0", "--epochs", "0.5"))
    numbers = pd.read_csv(tmp_path / "runs/compare/scenes/compare.csv")
    assert sorted(zip(numbers["checkpoint"], numbers["task"], strict=True)) == [
        (name, f"own-scenes-{end}") for name in ("random:resnet18", "random:resnet18?seed=1") for end in ("fcn", "fpn")
    ]
    assert numbers["mean"].between(0, 100).all()
    assert said.count("n too small to compare") == 2
    page = (tmp_path / "runs/compare/scenes/index.html").read_text()
    assert "mIoU" in page
    assert "AP" in page
