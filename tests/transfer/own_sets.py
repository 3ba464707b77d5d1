"""A small detection data set of a user in the layouts that people and tools write. Needs no engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ("ant", "bee", "cat")
IDS = (3, 7, 40)  # of the categories, with gaps
COUNTS = {"train": 6, "val": 4}
SIZE = (64, 48)  # width, height
EMPTY, CROWDED = 2, 1  # number of the image without objects, and of the one with a crowd, in each part


def draw(path: Path, number: int) -> list[tuple[int, int, int, int, int]]:
    """Write a PNG of noise and two coloured boxes; return class, left, top, width and height of each."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 200, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC)
    boxes = []
    for label in rng.choice(3, 2, replace=False).tolist():
        left, top = int(rng.integers(0, 30)), int(rng.integers(0, 20))
        width, height = int(rng.integers(16, 30)), int(rng.integers(14, 26))
        cv2.rectangle(
            image, (left, top), (left + width - 1, top + height - 1), [255 * (label == c) for c in range(3)], -1
        )
        boxes.append((label, left, top, width, height))
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return boxes


def content(folder: Path, split: str, counts: dict[str, int] = COUNTS, masks: bool = False) -> dict[str, Any]:
    """Draw the images of a part into a folder; return its annotations in COCO's format."""
    images, rows = list[dict[str, Any]](), list[dict[str, Any]]()
    for number in range(counts[split]):
        name = f"{split}{number:03d}.png"
        boxes = draw(folder / name, 1000 * (split == "val") + number)
        images.append({"id": 17 * number + 5, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for at, (label, x, y, w, h) in enumerate(boxes if number != EMPTY else []):
            mask = [[x, y, x + w, y, x + w, y + h, x + w / 2, y + h / 2, x, y + h]]
            rows.append({
                "id": len(rows) + 11, "image_id": images[-1]["id"], "category_id": IDS[label], "bbox": [x, y, w, h],
                "iscrowd": int(number == CROWDED and at == 1), **({"segmentation": mask} if masks else {"area": w * h}),
            })  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in zip(IDS, CLASSES, strict=True)]
    return {"images": images, "annotations": rows, "categories": categories}


def without_crowds(part: dict[str, Any]) -> dict[str, Any]:
    """Return annotations with every crowd as an object."""
    return part | {"annotations": [row | {"iscrowd": 0} for row in part["annotations"]]}


def write_coco(root: Path, masks: bool = False, crowds: bool = True, counts: dict[str, int] = COUNTS) -> Path:
    """Write train.json, val.json and images/."""
    for split in COUNTS:
        part = content(root / "images", split, counts, masks)
        (root / f"{split}.json").write_text(json.dumps(part if crowds else without_crowds(part)))
    return root


def write_roboflow(root: Path) -> Path:
    """Write the export of Roboflow: a folder a part, and a category that names the group of the others."""
    for split, folder in (("train", "train"), ("val", "valid")):
        part = content(root / folder, split)
        for row in part["categories"]:
            row["supercategory"] = "animals"
        part["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        (root / folder / "_annotations.coco.json").write_text(json.dumps(part))
    return root


def write_cvat(root: Path) -> Path:
    """Write CVAT's export in COCO's format: one part, images in a folder of its name."""
    part = content(root / "images" / "default", "train")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_default.json").write_text(json.dumps(part))
    return root


def write_label_studio(root: Path) -> Path:
    """Write Label Studio's export in COCO's format, as on Windows."""
    part = content(root / "images", "train")
    for image in part["images"]:
        image["file_name"] = f"images\\{image['file_name']}"
    (root / "result.json").write_text(json.dumps(part))
    return root


def write_yolo(root: Path, per_split: bool = True) -> Path:
    """Write a folder of images and one of labels a part, and data.yaml; crowds are objects."""
    for split in COUNTS:
        names = ("images", "labels") if per_split else (f"{split}/images", f"{split}/labels")
        folders = [root / name / split if per_split else root / name for name in names]
        part = content(folders[0], split)
        folders[1].mkdir(parents=True)
        for image in part["images"]:
            rows = [row for row in part["annotations"] if row["image_id"] == image["id"]]
            lines = []
            for row in rows:
                x, y, w, h = row["bbox"]
                numbers = ((x + w / 2) / SIZE[0], (y + h / 2) / SIZE[1], w / SIZE[0], h / SIZE[1])
                lines.append(" ".join([str(IDS.index(row["category_id"])), *(f"{n:.6f}" for n in numbers)]))
            if rows:
                (folders[1] / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(f"names: [{', '.join(CLASSES)}]\n")
    return root


def write_voc(root: Path, beside: bool = False, counted_from: int = 1) -> Path:
    """Write VOC's folders, or xml files beside the images of each part; crowds are difficult objects."""
    for split in COUNTS:
        images = root / split if beside else root / "JPEGImages"
        annotations = root / split if beside else root / "Annotations"
        part = content(images, split)
        annotations.mkdir(exist_ok=True)
        for image in part["images"]:
            objects = ""
            for row in part["annotations"]:
                if row["image_id"] == image["id"]:
                    x, y, w, h = row["bbox"]
                    objects += (
                        f"<object><name>{CLASSES[IDS.index(row['category_id'])]}</name><difficult>{row['iscrowd']}"
                        f"</difficult><bndbox><xmin>{x + counted_from}</xmin><ymin>{y + counted_from}</ymin>"
                        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                    )
            size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
            text = f"<annotation><filename>{image['file_name']}</filename>{size}{objects}</annotation>"
            (annotations / image["file_name"]).with_suffix(".xml").write_text(text)
        if not beside:
            lists = root / "ImageSets" / "Main"
            lists.mkdir(parents=True, exist_ok=True)
            names = [Path(image["file_name"]).stem for image in part["images"]]
            (lists / f"{split}.txt").write_text("\n".join(names))
    return root


def copy_into_train(root: Path, quality: int | None = None) -> Path:
    """Put a copy of a test image of a COCO data set among its training images; with a quality, as a JPEG."""
    source = root / "images" / "val000.png"
    target = root / "images" / ("again.png" if quality is None else "again.jpg")
    if quality is None:
        shutil.copyfile(source, target)
    else:
        assert cv2.imwrite(str(target), cv2.imread(str(source)), [cv2.IMWRITE_JPEG_QUALITY, quality])
    part = json.loads((root / "train.json").read_text())
    part["images"].append({"id": 9999, "file_name": target.name, "width": SIZE[0], "height": SIZE[1]})
    (root / "train.json").write_text(json.dumps(part))
    return target
