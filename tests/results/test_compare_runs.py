"""A comparison that is started as a user does it, stopped, and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

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
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)  # type: ignore[call-overload]


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
    done = [*(out / "records").rglob("*.json"), *(tmp_path / "stopped" / "runs" / "features").glob("*.features")]
    assert done
    made = {path: path.stat().st_mtime_ns for path in done}
    finish(start(tmp_path / "stopped", *words))
    said = finish(start(tmp_path / "whole", *words))
    assert "tied" in said or "beats" in said
    for path, when in made.items():  # a job that was stopped beside its receipt finds its record, and measures nothing
        assert path.stat().st_mtime_ns == when, f"{path} was made twice"
    outs = [tmp_path / name / "runs" / "compare" / "garments" for name in ("stopped", "whole")]
    tables = [pd.read_csv(folder / "compare.csv")[MEASURED] for folder in outs]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert len(tables[0]) == 8, "two checkpoints, two benchmarks, two fractions"
    counts = [len([*(folder / "records").rglob("*.json")]) for folder in outs]
    assert counts[0] == counts[1] > 0
