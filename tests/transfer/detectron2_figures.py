"""The right figures of small cases by hand: absent classes and sizes, missing area, difficult objects.

Run by test_detect.py in a process of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.structures import Boxes, Instances

from transfer.detection.detectron2_engine.evaluation import VocEvaluator
from transfer.detection.evaluation import coco_metrics, fractions, load_coco

FIGURES = "detection figures"


def voc_of(folder: Path, objects: list[tuple[str, tuple[int, int, int, int]]], more: str = "") -> VocEvaluator:
    """Write one image's xml with objects, and return the evaluator with detections that equal them."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    text = "".join(
        f"<object><name>{name}</name>{more}<bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(corners, box, strict=True))
        + "</bndbox></object>"
        for name, box in objects
    )
    for name, content in (
        ("Annotations/a.xml", f"<annotation>{text}</annotation>"),
        ("ImageSets/Main/test.txt", "a\n"),
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
    meta = MetadataCatalog.get(f"voc_2007_{folder.parent.name}")
    meta.set(thing_classes=list(CLASS_NAMES), dirname=str(folder), year=2007, split="test")
    boxes = torch.tensor([box for _, box in objects], dtype=torch.float) - torch.tensor([1.0, 1, 0, 0])
    found = Instances((100, 100), pred_boxes=Boxes(boxes), scores=torch.ones(len(objects)))
    found.pred_classes = torch.tensor([CLASS_NAMES.index(name) for name, _ in objects])
    judge = VocEvaluator(meta.name)
    judge.reset()
    judge.process([{"image_id": "a"}], [{"instances": found}])
    return judge


PAIR = [("cat", (5, 6, 40, 50)), ("dog", (30, 31, 90, 95))]
USUAL = "<pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"


@pytest.mark.fault(FIGURES, "detect", "VOC: a test set that shows 2 of 20 classes, perfect detections")
def test_voc_classes_without_objects_have_no_figure(tmp_path: Path) -> None:
    metrics = voc_of(tmp_path / "voc", PAIR, USUAL).evaluate()["bbox"]
    for name in ("AP", "AP50", "AP75", "area-AP", "area-AP50", "area-AP75", "AP-cat", "AP-dog"):
        assert metrics[name] == pytest.approx(100)
    kept = {name for name in fractions({"bbox": metrics}) if "AP-" in name}
    assert kept == {f"bbox/{prefix}AP-{name}" for prefix in ("", "area-") for name in ("cat", "dog")}


@pytest.mark.fault(
    "third-party exceptions", "detect", "VOC: the evaluator on xml without difficult, truncated and pose"
)
def test_voc_objects_are_not_difficult_unless_the_file_says_so(tmp_path: Path) -> None:
    assert voc_of(tmp_path / "voc", PAIR).evaluate()["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.fault(FIGURES, "detect", "COCO: the evaluator without area: sizes from the masks, else from the boxes")
@pytest.mark.parametrize("masks", [True, False])
def test_objects_without_area_have_the_size_of_their_mask_or_box(
    masks: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One small, one medium and one large object; the medium one is found."""
    rows = []
    for number, side in enumerate((20, 50, 150), 1):
        box = [5, 5, side, side]
        row = {"id": number, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0}
        corner = [5, 5, 5 + side, 5, 5 + side, 5 + side, 5, 5 + side]
        rows.append(row | ({"segmentation": [corner]} if masks else {}))
    images = [{"id": i, "width": 200, "height": 200, "file_name": f"{i}.jpg"} for i in (1, 2, 3)]
    file = tmp_path / "val.json"
    file.write_text(json.dumps({"images": images, "annotations": rows, "categories": [{"id": 1, "name": "nut"}]}))
    found = [{"image_id": 2, "category_id": 1, "bbox": [5, 5, 50, 50], "score": 0.5}]
    metrics = coco_metrics(load_coco(str(file)), found, "bbox")
    assert [metrics[name] for name in ("APs", "APm", "APl")] == pytest.approx([0, 100, 0])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{file}: 3 annotations have no area, computed from their {'masks' if masks else 'boxes'}"


@pytest.mark.fault(FIGURES, "detect", "COCO: perfect detections of an object whose annotation id is 0")
def test_an_annotation_id_of_zero_is_found(tmp_path: Path) -> None:
    row = {"id": 0, "image_id": 1, "category_id": 1, "bbox": [5, 5, 50, 50], "area": 2500, "iscrowd": 0}
    images = [{"id": 1, "width": 200, "height": 200, "file_name": "1.jpg"}]
    file = tmp_path / "val.json"
    file.write_text(json.dumps({"images": images, "annotations": [row], "categories": [{"id": 1, "name": "nut"}]}))
    truth = load_coco(str(file))
    assert coco_metrics(truth, perfect(row), "bbox")["AP"] == pytest.approx(100)


def perfect(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0}]


@pytest.mark.parametrize("lvis", [False, True])
def test_coco_classes_and_sizes_without_objects_have_no_figure(lvis: bool, tmp_path: Path) -> None:
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 50, 50], "area": 2500, "iscrowd": 0}
    images = [{"id": 1, "width": 200, "height": 200, "file_name": "1.jpg", "neg_category_ids": []}]
    names = [{"id": i, "name": str(i), "frequency": "rcf"[i - 1]} for i in (1, 2, 3)]
    file = tmp_path / "val.json"
    file.write_text(json.dumps({"images": images, "annotations": [row], "categories": names}))
    metrics = fractions({"bbox": coco_metrics(load_coco(str(file)), perfect(row), "bbox", lvis=lvis)})
    frequency = {"bbox/APr"} if lvis else set()
    assert set(metrics) == {"bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/APm", "bbox/AP-1"} | frequency
    assert list(metrics.values()) == pytest.approx([1] * len(metrics))
