"""Find the parts of a detection data set in the folders that people and tools make: COCO, YOLO and VOC.

Known are the folders of COCO, VOC and Ultralytics, and the exports of Roboflow, CVAT and Label Studio.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Content = dict[str, list[dict[str, Any]]]  # of a file in COCO's format

# Names of the parts; the first that exists counts.
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
WHOLE = "all"  # name of the one part of a data set without parts
# {s} stands for the name of a part.
COCO_FILES = (
    "{s}.json", "annotations/instances_{s}.json", "annotations/instances_{s}2017.json", "annotations/{s}.json",
    "{s}/_annotations.coco.json", "{s}/annotations.json",
)  # fmt: skip
COCO_WHOLE = (  # Label Studio, CVAT, Roboflow
    "result.json", "annotations/instances_default.json", "_annotations.coco.json", "annotations.json",
    "annotations/annotations.json",
)  # fmt: skip
COCO_IMAGES = ("images", "images/{s}", "{s}/images", "{s}", "{s}2017", "images/default", ".")
YOLO_FOLDERS = (  # images, labels
    ("images/{s}", "labels/{s}"), ("{s}/images", "{s}/labels"), ("obj_{s}_data", "obj_{s}_data"), ("{s}", "{s}"),
)  # fmt: skip
YOLO_NAMES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")  # files of class names
YOLO_WHOLE = (("images", "labels"), (".", "."))
VOC_IMAGES = ("JPEGImages", "images", ".")
EXPECTED = (
    "COCO: train.json, val.json and images/; or train/_annotations.coco.json and valid/_annotations.coco.json; or "
    "annotations/instances_*.json. YOLO: data.yaml or classes.txt, images/train, images/val, labels/train and "
    "labels/val. VOC: Annotations/, JPEGImages/ and ImageSets/Main/"
)


@dataclass(frozen=True)
class Part:
    """Where a part of a data set lies.

    Attributes:
        layout: "coco", "yolo" or "voc".
        annotations: COCO's file, or the folder of YOLO's or VOC's files.
        images: folders in which the images may be, the likeliest first.
        names: VOC's list of the images; None: all that have annotations.
    """

    layout: str
    annotations: Path
    images: tuple[Path, ...]
    names: Path | None = None


def find_parts(data: Path) -> dict[str, Part]:
    """Return the parts of a data set: "train" and "val", or WHOLE alone.

    Raises:
        ValueError: there is no such folder, or no known layout in it.
    """
    if not data.is_dir():
        raise ValueError(f"--data {data}: {data.absolute()} is no folder; it has to hold one of these: {EXPECTED}")
    for find in (_coco, _voc, _yolo):
        found: dict[str, Part] = {}
        for split, names in SPLITS.items():
            for name in names:
                if split not in found and (part := find(data, name)):
                    found[split] = part
        if "train" not in found and "val" not in found and (whole := find(data, None)):
            return {WHOLE: whole}
        if "train" in found:
            return found if "val" in found else {WHOLE: found["train"]}
    raise ValueError(f"--data {data}: no annotations in a known layout; expected {EXPECTED}")


def _named(patterns: tuple[str, ...], split: str | None) -> Iterator[str]:
    for pattern in patterns:
        if split is not None or "{s}" not in pattern:
            yield pattern.format(s=split)


def _coco(data: Path, split: str | None) -> Part | None:
    for name in COCO_WHOLE if split is None else _named(COCO_FILES, split):
        file = data / name
        if file.is_file():
            folders = [file.parent] * (file.name == "_annotations.coco.json")
            folders += [data / folder for folder in _named(COCO_IMAGES, split)]
            return Part("coco", file, tuple(folder for folder in folders if folder.is_dir()))
    return None


def _voc(data: Path, split: str | None) -> Part | None:
    annotations, lists = data / "Annotations", data / "ImageSets" / "Main"
    if annotations.is_dir():
        folders = tuple(folder for name in VOC_IMAGES if (folder := data / name).is_dir())
        if split is None:
            return Part("voc", annotations, folders)
        names = lists / f"{split}.txt"
        if names.is_file():
            return Part("voc", annotations, folders, names)
    folder = data / split if split else data
    return Part("voc", folder, (folder,)) if any(folder.glob("*.xml")) else None


def _yolo(data: Path, split: str | None) -> Part | None:
    for pair in YOLO_WHOLE if split is None else YOLO_FOLDERS:
        images, labels = (data / name.format(s=split) for name in pair)
        lists = (path for path in labels.glob("*.txt") if path.name not in YOLO_NAMES)
        if images.is_dir() and any(lists) and (images != labels or split or (data / "classes.txt").is_file()):
            return Part("yolo", labels, (images,))
    return None


def image_folder(folders: tuple[Path, ...], first: str) -> Path:
    """Return the first folder that holds the image `first`; where none does, the first folder.

    Raises:
        ValueError: there is no folder.
    """
    if not folders:
        raise ValueError(f"no folder of images beside the annotations: put them into images/ ({first} ...)")
    return next((folder for folder in folders if (folder / first).is_file()), folders[0])
