"""Runs of mmdet on tiny data, and its metrics beside detectron2's. Run by test_detect.py in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from results.record import read_all
from tests.transfer.small_mmdet import make_data, run, small, try_task
from transfer.detection.evaluation import load_coco
from transfer.detection.mmdet_engine import check
from transfer.detection.mmdet_engine.evaluation import CocoAP, VocAP, encode
from transfer.detection.voc import read_voc

ROOT = Path(__file__).parents[2]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def test_a_task_trains_evaluates_and_resumes_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    """The cut of the table in docs/mmdet.md; tests/benchmarks/bench_mmdet.py makes all of it."""
    row, record = try_task("fashion-fpn", data, tmp_path, "random:resnet18")
    assert row.pop("tensors equal") == "120 of 120"
    assert set(row.values()) == {"yes"}
    assert record.config["engine"] == "mmdet"
    assert record.environment["versions"]["mmdet"] == "3.3.0"
    assert record.environment["data_check"] == "passed"
    assert record.headline == "bbox/AP"
    assert {"bbox/AP", "segm/AP"} <= record.metrics.keys()
    (folder,) = (tmp_path / "whole").glob("*/fashion-fpn-mmdet/seed0")
    assert {"config.yaml", "metrics.jsonl", "changes.txt", "tensorboard", "curve.png"} <= {
        p.name for p in folder.iterdir()
    }
    assert cv2.imread(str(folder / "vis" / "000.png")).shape[1] > 900
    again = run(
        "fashion-fpn", data, tmp_path / "whole", "--eval-only", "--force", *small("fashion-fpn"), ckpt="random:resnet18"
    )
    assert "backbone:" not in again
    assert read_all(tmp_path / "whole" / "records")[0].metrics == record.metrics


def test_a_users_config_and_two_seeds(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        '_base_ = ["mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"]\n'
        "images = dict(train=4, val=2)\n"
        'train_dataloader = dict(dataset=dict(data_root="coco", data_prefix=dict(img="train2017")))\n'
        'val_dataloader = dict(dataset=dict(data_root="coco", data_prefix=dict(img="val2017")))\n'
    )
    given = [option for option in small("coco-retinanet-1x") if "scales" not in option]
    given.append("train_dataloader.dataset.pipeline.2.scale=(96,64)")
    said = run(str(path), data, tmp_path, "--seeds", "0", "1", *given, ckpt="random:resnet18")
    assert said.count("backbone: 120 of 120 tensors") == 2
    assert "std (n = 2)" in said
    one, other = read_all(tmp_path / "records")
    assert one.task == "mine-mmdet"
    assert one.config_hash == other.config_hash
    wrong = run(str(path), data, tmp_path / "b", *given[:-1], "train_dataloader.dataset.pipeline.2.scale=(96,64)",
                "images.train=9", ckpt="random:resnet18", status=2)  # fmt: skip
    assert "4 training and 2 test images are not the 9 and 2 of the config" in wrong


CHECK = ("--check-data", "--device", "cpu")


@pytest.mark.fault(
    "detection figures", "detect", "class names of an mmdet task that are not the file's, or in another order"
)
def test_class_names_that_are_not_the_files_are_refused(data: Path, tmp_path: Path) -> None:
    file = data / "coco/annotations/instances_train2017.json"
    before = file.read_text()
    content = json.loads(before)
    content["categories"].reverse()
    try:
        file.write_text(json.dumps(content))
        said = run("coco-retinanet-1x", data, tmp_path, *CHECK, status=2)
        assert "its 80 categories are not the task's 80 classes in the same order" in said
        content["categories"][0]["name"] = "comb"
        file.write_text(json.dumps(content))
        assert "only in the file: ['comb']" in run("coco-retinanet-1x", data, tmp_path, *CHECK, status=2)
        file.unlink()
        assert "Expected below it" in run("coco-retinanet-1x", data, tmp_path, *CHECK, status=2)
    finally:
        file.write_text(before)
    wrong = ("--cfg-options", "model.bbox_head.num_classes=3")
    said = run("coco-retinanet-1x", data, tmp_path, *CHECK, *wrong, status=2)
    assert "model.bbox_head.num_classes=3: the data have 80 classes; set it to that" in said
    assert "AP 100 with perfect detections" in run("coco-retinanet-1x", data, tmp_path, *CHECK)
    assert "voc_2007" not in run("voc-c4-24k", data, tmp_path, *CHECK)


def near(image: str | int, boxes: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Any]:
    """Return detections near the objects of an image, ten for each, with masks and different scores."""
    rng, count = np.random.default_rng(seed), 10 * len(boxes)
    moved = (np.repeat(boxes, 10, 0) + rng.uniform(-5, 5, (count, 4))).clip(0, (64, 48, 64, 48)).astype(np.float32)
    masks = np.zeros((count, 48, 64), bool)
    for mask, (left, top, right, bottom) in zip(masks, moved.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    scores = rng.permutation(count).astype(np.float32) / count
    return {"id": image, "boxes": moved, "masks": masks, "scores": scores, "labels": np.repeat(labels, 10)}


DETECTRON2 = """
import json, sys
from pathlib import Path
import numpy as np, torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from transfer.detection.detectron2_engine.data import register
from transfer.detection.detectron2_engine import config
from transfer.detection.detectron2_engine.evaluation import build_evaluator
from transfer.detection.evaluation import fractions
root, file, kept = map(Path, sys.argv[1:])
sets, answer = np.load(file, allow_pickle=True)["sets"].item(), {}
for task, name in (("coco-fpn-1x", "coco_2017_val"), ("voc-c4-24k", "voc_2007_test")):
    cfg = config.read_task(task)
    register(cfg, root)
    evaluator = build_evaluator(cfg, name, kept)
    evaluator.reset()
    for row in sets[name]:
        found = Instances((48, 64), pred_boxes=Boxes(torch.from_numpy(row["boxes"])),
            pred_classes=torch.from_numpy(row["labels"]), scores=torch.from_numpy(row["scores"]),
            pred_masks=torch.from_numpy(row["masks"]))
        evaluator.process([{"image_id": row["id"]}], [{"instances": found}])
    answer[name] = fractions(evaluator.evaluate())
print(json.dumps(answer))
"""


def test_both_engines_give_the_same_figures_for_the_same_detections(data: Path, tmp_path: Path) -> None:
    """Boxes and masks of COCO, and boxes of VOC's 2007 test, through the evaluators of both engines."""
    from mmdet.datasets import VOCDataset

    file = data / "coco/annotations/instances_val2017.json"
    truth = load_coco(str(file))
    order, sets = [row["id"] for row in truth.dataset["categories"]], {"coco_2017_val": [], "voc_2007_test": []}
    for seed, image in enumerate(truth.imgs):
        rows = truth.imgToAnns[image]
        corners = np.array([[*row["bbox"][:2], *np.add(row["bbox"][:2], row["bbox"][2:])] for row in rows])
        labels = np.array([order.index(row["category_id"]) for row in rows])
        sets["coco_2017_val"].append(near(image, corners, labels, seed))
    for seed, one in enumerate(read_voc(data / "VOC2007", "test", VOCDataset.METAINFO["classes"])):
        sets["voc_2007_test"].append(near(one.name, one.boxes, one.labels, seed))
    np.savez(tmp_path / "sets.npz", sets=np.array(sets, dtype=object))
    given = [sys.executable, "-c", DETECTRON2, str(data), str(tmp_path / "sets.npz"), str(tmp_path)]
    done = subprocess.run(
        given, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    voc = VocAP(data_root=str(data), ann_file="VOC2007/ImageSets/Main/test.txt")
    voc.dataset_meta = VOCDataset.METAINFO
    for name, metric in {
        "coco_2017_val": CocoAP(["bbox", "segm"], data_root="", ann_file=str(file)),
        "voc_2007_test": voc,
    }.items():
        # In VOC, mmdet counts all coordinates from 0, and detectron2 the right and bottom ones from 1.
        shift = np.array([0, 0, 1, 1], np.float32) * (metric is voc)
        for row in sets[name]:
            parts = {"bboxes": row["boxes"] - shift, **{key: row[key] for key in ("scores", "labels", "masks")}}
            found = {key: torch.from_numpy(value) for key, value in parts.items()}
            metric.process(None, [{"img_id": row["id"], "pred_instances": found}])
        ours = metric.compute_metrics(metric.results)
        assert ours == theirs[name]
        assert len({value for value in ours.values() if 0 < value < 1}) > 3


def test_masks_are_encoded_as_cocos_run_lengths() -> None:
    from pycocotools import mask as rle

    masks = torch.rand(3, 7, 5) > 0.5
    assert (torch.from_numpy(rle.decode(encode(masks))).permute(2, 0, 1).bool() == masks).all()
    assert encode(masks[:0]) == []


@pytest.mark.fault(
    "a newcomer's mistakes", "detect", "operations that nobody has compiled: the layer and the way are named"
)
def test_a_layer_without_operation_is_named_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    given = small("coco-fpn-1x")
    said = run(
        "coco-fpn-1x", data, tmp_path, *given, "model.roi_head.bbox_roi_extractor.roi_layer.pool_mode=max", status=2
    )
    assert "pool_mode='max'; set 'avg'" in said
    assert not [*tmp_path.glob("*/*/seed0/config.yaml"), *tmp_path.glob("records/*")]


def test_check_says_whose_operations_run(tmp_path: Path) -> None:
    said = check.report(tmp_path)
    assert "mmdet: a training step of RetinaNet on cpu works, loss " in said
    assert "mmcv.ops: torchvision's" in said
    assert "cityscapes" in said
