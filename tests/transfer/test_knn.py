"""The kNN command: any checkpoint in, a record out, once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from pretrain.images import load_images
from results.record import read
from transfer.knn import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trousers and bags, which random features tell apart: 40 to vote, 20 to classify."""
    images = load_images(["fashion:test"], root=str(ROOT / "data"))
    path = tmp_path_factory.mktemp("garments")
    for label in (1, 8):
        for split, places in (("bank", slice(0, 20)), ("queries", slice(20, 30))):
            (path / split / str(label)).mkdir(parents=True)
            for i in (images.labels == label).nonzero()[0][places]:
                cv2.imwrite(str(path / split / str(label) / f"{i}.png"), images.read(int(i)))
    return path


def options(garments: Path, records: Path) -> list[str]:
    values = {
        "ckpt": "random:resnet18", "bank": garments / "bank", "queries": garments / "queries", "size": 32,
        "k": "[1, 5]", "records": records, "device": "cpu",
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in values.items()]


def test_a_random_network_is_measured_and_recorded_once(garments: Path, tmp_path: Path) -> None:
    records = tmp_path / "knn.jsonl"
    for _ in range(2):
        assert main(options(garments, records)) == 0
    (record,) = read(records)
    assert record.metrics.keys() == {"knn_top1_k1", "knn_top1_k5"}
    assert record.metrics["knn_top1_k5"] > 0.9
    assert record.checkpoint["arch"] == "resnet18"
    assert main([*options(garments, records), "--force"]) == 0
    assert main([*options(garments, records), "--seeds", "1"]) == 0
    one, again, other = read(records)
    assert one.key == again.key != other.key
    assert one.metrics == again.metrics


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--ckpt=/no/such.pth"], "/no/such.pth"),
        (["--bank=/no/such/folder"], "/no/such/folder: no such file or folder"),
        (["--k=[41]"], "k=41: must lie between 1 and the 40 images"),
        (["--queries=fashion:test"], "have different classes"),
    ],
)
def test_a_mistake_is_one_line(
    wrong: list[str], message: str, garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "knn.jsonl"
    assert main([*options(garments, records), f"--root={ROOT / 'data'}", *wrong]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not records.exists()


def test_it_runs_as_a_script(garments: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "transfer" / "knn.py"), *options(garments, tmp_path / "r.jsonl")],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "knn_top1_k5" in done.stdout
