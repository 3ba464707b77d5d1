"""Tiny data sets of coloured boxes in the real trees of COCO, LVIS, VOC and Cityscapes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

VOC_CLASSES = ("aeroplane", "person", "tvmonitor")
COCO_IDS = (1, 18, 90)  # person, dog, toothbrush: COCO's ids have gaps
SIZE = (48, 64)  # height, width


def picture(path: Path, number: int) -> list[tuple[int, int, int, int, int]]:
    """Write a JPEG with two coloured boxes; return class, left, top, width and height of each."""
    rng = np.random.default_rng(number)
    image = rng.integers(90, 110, (*SIZE, 3), dtype=np.uint8)
    boxes = []
    for label in rng.choice(3, 2, replace=False).tolist():
        left, top = int(rng.integers(0, 30)), int(rng.integers(0, 20))
        colour = [0, 0, 0]
        colour[label] = 255
        cv2.rectangle(image, (left, top), (left + 24, top + 20), colour, -1)
        boxes.append((label, left, top, 24, 20))
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return boxes


def coco(root: Path, lvis: bool = False, keypoints: bool = False) -> Path:
    """Write COCO 2017, its keypoints, or LVIS v1: four training images, two test images."""
    for split, count in (("train", 4), ("val", 2)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            name = f"{100 * count + number:012d}.jpg"
            boxes = picture(root / "coco" / f"{split}2017" / name, 10 * count + number)
            image = {"id": 100 * count + number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
            more = lists | {"coco_url": f"http://images.cocodataset.org/{split}2017/{name}"} if lvis else {}
            images.append(image | more)
            for label, x, y, w, h in boxes:
                points = [value for i in range(17) for value in (x + w * i / 16, y + h * (i % 4) / 3, 2)]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": image["id"], "bbox": [x, y, w, h], "area": w * h,
                    "category_id": 1 if keypoints else COCO_IDS[label], "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    **({"keypoints": points, "num_keypoints": 17} if keypoints else {}),
                })  # fmt: skip
        kind = "lvis" if lvis else "person_keypoints" if keypoints else "instances"
        _write(root, split, {"info": {}, "images": images, "annotations": annotations}, kind)
    return root


def coco_categories() -> list[dict[str, Any]]:
    """Return COCO's 80 categories, whose ids have gaps, from the engine that this process may import."""
    if "mmdet" in sys.modules:
        from mmdet.datasets import CocoDataset

        gaps = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
        ids = [i for i in range(1, 91) if i not in gaps]
        return [{"id": i, "name": name} for i, name in zip(ids, CocoDataset.METAINFO["classes"], strict=True)]
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    return [{"id": row["id"], "name": row["name"]} for row in COCO_CATEGORIES if row["isthing"]]


def _write(root: Path, split: str, content: dict[str, Any], kind: str) -> None:
    if kind == "lvis":
        content["categories"] = [{"id": i, "name": str(i), "frequency": "rcf"[i % 3]} for i in range(1, 1204)]
        path = root / "lvis" / f"lvis_v1_{split}.json"
    else:
        things = coco_categories()
        content["categories"] = things if kind == "instances" else things[:1]
        path = root / "coco" / "annotations" / f"{kind}_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def voc(root: Path) -> Path:
    """Write VOC 2007 and 2012: three training images each, two test images of 2007."""
    for year, split, count in ((2007, "trainval", 3), (2012, "trainval", 3), (2007, "test", 2)):
        folder = root / f"VOC{year}"
        names = [f"{split}{number:06d}" for number in range(count)]
        for number, name in enumerate(names):
            boxes = picture(folder / "JPEGImages" / f"{name}.jpg", year + number)
            objects = "".join(
                f"<object><name>{VOC_CLASSES[label]}</name><pose>Frontal</pose><truncated>0</truncated>"
                f"<difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
                f"<ymax>{y + h}</ymax></bndbox></object>"
                for label, x, y, w, h in boxes
            )
            size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
            path = folder / "Annotations" / f"{name}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"<annotation>{size}{objects}</annotation>")
        lists = folder / "ImageSets" / "Main" / f"{split}.txt"
        lists.parent.mkdir(parents=True, exist_ok=True)
        lists.write_text("\n".join(names) + "\n")
    return root


def cityscapes(root: Path) -> Path:
    """Write Cityscapes fine: two training images, one test image, a person and a car in each."""
    ids = {"person": 24, "car": 26}
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            name = f"ulm_{number:06d}_000019"
            boxes = picture(root / "cityscapes" / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png", number)
            truth = root / "cityscapes" / "gtFine" / split / "ulm"
            truth.mkdir(parents=True, exist_ok=True)
            instances, objects = np.zeros(SIZE, np.uint16), []
            for (_, x, y, w, h), (label, number_of) in zip(boxes, ids.items(), strict=True):
                corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
                objects.append({"label": label, "polygon": corners})
                instances[y : y + h, x : x + w] = 1000 * number_of
            cv2.imwrite(str(truth / f"{name}_gtFine_instanceIds.png"), instances)
            cv2.imwrite(str(truth / f"{name}_gtFine_labelIds.png"), (instances // 1000).astype(np.uint8))
            content = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": objects}
            (truth / f"{name}_gtFine_polygons.json").write_text(json.dumps(content))
    return root
