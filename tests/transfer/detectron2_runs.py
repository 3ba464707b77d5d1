"""The command on tiny data sets in their real trees, resuming, user mistakes. Run by test_detect.py on its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from results.record import Record, read_all
from tests.transfer.detection_data import cityscapes, coco, voc
from transfer.detect import main

ROOT = Path(__file__).parents[2]
# Settings with which a model trains two iterations and is evaluated within seconds
SMALL = [
    "INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MIN_SIZE_TEST", "48", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1",
    "TEST.PRECISE_BN.NUM_ITER", "1", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "40", "MODEL.RPN.PRE_NMS_TOPK_TEST", "20",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "5", "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "0.0", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "64",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]", "TEST.DETECTIONS_PER_IMAGE", "5",
]  # fmt: skip
NEEDS_CITYSCAPES = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("cityscapesscripts", "shapely", "pyquaternion"))), reason="not installed"
)


def measured(tmp_path: Path, task: str, *options: str, settings: list[str] | None = None, code: int = 0) -> Record:
    records = tmp_path / "records"
    given = ["--task", task, "--out", str(tmp_path / "out"), "--records", str(records), "--device", "cpu"]
    assert main([*given, *options, *(SMALL if settings is None else settings)]) == code
    (record,) = read_all(records)
    return record


@pytest.mark.parametrize(
    ("task", "make", "kinds"),
    [
        ("coco-c4-1x", coco, {"bbox", "segm"}),
        ("coco-fpn-1x", coco, {"bbox", "segm"}),
        ("coco-retinanet-1x", coco, {"bbox"}),
        ("voc-c4-24k", voc, {"bbox"}),
        ("lvis-v1-fpn", lambda root: coco(root, lvis=True), {"bbox", "segm"}),
        ("coco-keypoint-2x", lambda root: coco(root, keypoints=True), {"bbox", "keypoints"}),
        pytest.param("cityscapes-instance", cityscapes, {"segm"}, marks=NEEDS_CITYSCAPES),
    ],
)
def test_a_task_runs_on_data_in_its_real_tree(
    task: str, make: Any, kinds: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Build, load the backbone, train two iterations, evaluate, draw, record."""
    root = make(tmp_path / "data")
    arch = "resnet50" if task in ("coco-c4-1x", "coco-fpn-1x", "voc-c4-24k") else "resnet18"
    record = measured(tmp_path, task, "--ckpt", f"random:{arch}", "--data-root", str(root))
    said = capsys.readouterr().out
    assert f"{100 if arch == 'resnet18' else 265} tensors of the built model equal random:{arch}" in said
    assert "published" in said
    assert {name.split("/")[0] for name in record.metrics} == kinds
    assert all(0 <= value <= 1 for value in record.metrics.values())
    assert all({f"{kind}/AP", f"{kind}/AP50"} <= record.metrics.keys() for kind in kinds)
    assert record.backbone["arch"] == arch
    assert record.headline == ("bbox/AP" if "bbox" in kinds and "keypoints" not in kinds else f"{max(kinds)}/AP")
    assert "SyncBN" not in record.title.partition(";")[0], "one process trains with BN"
    assert record.cost["images"] in (2, 4)
    (folder,) = (tmp_path / "out").glob(f"*/{task}/seed0")
    assert "published" in (folder / "changes.txt").read_text()
    made = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "command.txt", "environment.json", "metrics.jsonl", "tensorboard", "curve.png"} <= made
    pictures = sorted((folder / "vis").iterdir())
    assert pictures
    assert cv2.imread(str(pictures[0])).shape[1] > 900
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    assert f"{min(kinds)}/AP" in rows[-1]


@pytest.fixture
def garments(tmp_path: Path) -> Path:
    """A data root with Fashion-MNIST, from which the scenes are made."""
    (tmp_path / "FashionMNIST").symlink_to(ROOT / "data" / "FashionMNIST")
    return tmp_path


FASHION = [
    "TASK.SCENES", "[16,2,48,0]", "SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(4,)", "SOLVER.WARMUP_ITERS", "2",
    "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.PRECISE_BN.NUM_ITER", "2", "INPUT.MIN_SIZE_TRAIN", "(48,)",
    "INPUT.MIN_SIZE_TEST", "48", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
]  # fmt: skip


def command(root: Path, out: str, *options: str) -> list[str]:
    return [
        "--ckpt", "random", "--task", "fashion-fpn", "--batch", "4", "--data-root", str(root),
        "--out", str(root / out), "--records", str(root / f"{out}_records"), "--device", "cpu", *options,
    ]  # fmt: skip


def test_a_killed_run_resumes_bit_identically(garments: Path) -> None:
    """Killed between two checkpoints; --resume restores weights, momentum, learning rate, data and sampling."""
    torch.set_num_threads(1)
    assert main([*command(garments, "whole"), *FASHION]) == 0
    began = time.time()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "transfer" / "detect.py"), *command(garments, "killed"), *FASHION],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.time() + 240
    while not (found := list(garments.glob("killed/*/*/*/last_checkpoint"))) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (path.parent for path in found)
    assert not (folder / "model_final.pth").exists()
    assert main([*command(garments, "killed"), *FASHION]) == 2  # neither --resume nor --force
    before_resuming = time.time() - began
    assert main([*command(garments, "killed", "--resume"), *FASHION]) == 0
    (whole,) = garments.glob("whole/*/*/*/model_final.pth")
    one, two = (torch.load(path) for path in (whole, folder / "model_final.pth"))
    assert one["model"].keys() == two["model"].keys()
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, two["model"][name]), name
    momentum = [state["trainer"]["_trainer"]["optimizer"]["state"] for state in (one, two)]
    assert all(
        torch.equal(a["momentum_buffer"], b["momentum_buffer"])
        for a, b in zip(momentum[0].values(), momentum[1].values(), strict=True)
    )
    (first,), (second,) = (read_all(garments / f"{name}_records") for name in ("whole", "killed"))
    assert first.metrics == second.metrics
    assert first.matches(second)
    assert first.cost["images"] == second.cost["images"] == 24
    assert "seconds_before_resuming" not in first.cost
    assert 0 < second.cost["seconds_before_resuming"] < before_resuming
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert len((folder / "command.txt").read_text().splitlines()) == 2


def test_a_finished_run_is_skipped_or_evaluated_again_or_started_afresh(
    garments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [*FASHION, "SOLVER.MAX_ITER", "2"]
    assert main([*command(garments, "a"), *short]) == 0
    (folder,) = garments.glob("a/*/*/*")
    trained = (folder / "model_final.pth").stat().st_mtime_ns
    (one,) = read_all(garments / "a_records")
    assert main([*command(garments, "a"), *short]) == 0
    assert "on record" in capsys.readouterr().out
    assert main([*command(garments, "a", "--eval-only", "--force"), *short]) == 0
    assert (folder / "model_final.pth").stat().st_mtime_ns == trained
    (two,) = read_all(garments / "a_records")
    assert one.metrics == two.metrics
    assert two.cost["seconds_before_resuming"] > 0
    assert main([*command(garments, "a", "--resume"), *short, "SOLVER.BASE_LR", "0.5"]) == 2
    assert "started with other settings (SOLVER.BASE_LR 0.01 → 0.5)" in capsys.readouterr().err
    assert main([*command(garments, "b", "--eval-only"), *short]) == 2
    assert "holds no trained detector" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        (["--ckpt", "/no/such.pth"], [], "/no/such.pth"),
        (["--ckpt", "README.md"], [], "README.md"),
        ([], ["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "fashion_scenes_train has 10 classes: set it to 10"),
        ([], ["DATASETS.TEST", "('fashion_scenes_test',)"], "fashion_scenes_test is unknown"),
        ([], ["TASK.DATA", "fashions"], "no data set tree is named 'fashions': use coco"),
        (["--task", "coco-c4-1x", "--data-root", "/no/data"], [], "/no/data lacks coco/train2017/*.jpg"),
        (["--task", "voc-c4-24k", "--data-root", "/no/data"], [], "/no/data lacks VOC2007/JPEGImages/*.jpg"),
        (
            ["--task", "cityscapes-instance", "--data-root", "/no"],
            [],
            "cityscapesscripts is not installed: pip install",
        ),
        (["--task", "coco-c4-1"], [], "--task coco-c4-1: no such task or file; did you mean coco-c4-1x?"),
        (["--num-gpus", "2"], [], "this torch sees 0 GPUs"),
        (["--num-machines", "2"], [], "several machines need GPUs"),
        (["--device", "tpu"], [], "use auto, cpu or cuda"),
        (["--ckpt", "random:resnet18_cifar"], [], "detectron2 builds no resnet18_cifar"),
        ([], ["SOLVER.BASE_LR", "1e9"], "the loss is not finite at learning rate"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], settings: list[str], message: str, garments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("nvidia-smi") and "--num-gpus" in options:
        pytest.skip("there are GPUs")
    assert main([*command(garments, "x", *options), *FASHION, *settings]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (garments / "x_records").exists()


def test_check_reports_what_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path)
    assert main(["--check", "--data-root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    rows = {name: rest.split() for name, _, rest in (line.partition("  ") for line in said.splitlines())}
    assert rows["RoIAlign"][0] == rows["NMS"][0] == rows["Res5ROIHeadsExtraNorm"][0] == "works"
    assert rows["torch"][0] == torch.__version__.split("+")[0]
    assert rows["data: coco"][0] == "found"
    assert rows["data: voc"][0] == "lacks"
