"""A user's detection data set: what the options name becomes two files in COCO's format, and what they hold."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from common.files import write_text
from common.folders import escaped, some
from transfer.own_data import coco, voc, yolo
from transfer.own_data.coco import Annotated
from transfer.own_data.layouts import WHOLE, Part, find_parts
from transfer.own_data.options import describe_split, file_name
from transfer.own_data.overlap import find_overlap

Row = dict[str, Any]


@dataclass(frozen=True)
class DetectionData:
    """A user's detection data set.

    Attributes:
        name: of the data set, for people.
        folder: of what is made from it: annotations that had to be converted, and tasks.
        identity: hash of the annotations and of the content of the images.
        files: annotations and images of train, annotations and images of val.
        classes: names.
        masks: whether the objects have masks.
        encoded: whether any of the masks is not a polygon.
        sides: median short and median long side of the training images, pixels.
        images: numbers of training and test images.
        trained: number of training images with objects.
        most: largest number of objects in a test image.
        tests: files of the test images.
        overlap: test images that are training images, in words; "" where there are none.
        notes: what was assumed or left out, in words.
    """

    name: str
    folder: Path
    identity: str
    files: tuple[str, str, str, str]
    classes: list[str]
    masks: bool
    encoded: bool
    sides: tuple[int, int]
    images: tuple[int, int]
    trained: int
    most: int
    tests: list[Path]
    overlap: str = ""
    notes: list[str] = field(default_factory=list)


def load(options: Namespace) -> DetectionData:
    """Read the data set that the options name; every image is read once, and no file of the user is changed.

    Raises:
        ValueError: names the file that is wrong and how to mend it; or test images are training images.
    """
    train, val, notes = _read_parts(options)
    contents = train.content, val.content
    overlap, hashes = find_overlap(train.paths(), val.paths(), options.allow_overlap)
    texts = [p.file.read_bytes() if p.file else json.dumps(p.content).encode() for p in (train, val)]
    identity = hashlib.sha256(b"\0".join([*texts, "".join(hashes).encode()])).hexdigest()[:12]
    notes += _check_classes(train, val)
    masks = _with_masks([row for content in contents for row in content["annotations"]], notes)
    name = file_name(options.data_name, options.data or options.train_json.absolute().parent)
    objects = [Counter(row.get("image_id") for row in c["annotations"] if not row.get("iscrowd")) for c in contents]
    folder = options.out / "data" / f"{name}-{identity}"
    return DetectionData(
        name, folder, identity, _files(train, val, folder, texts), _classes(train), masks,
        any(isinstance(row.get("segmentation"), dict) and not row.get("iscrowd") for row in contents[0]["annotations"]),
        _sides(contents[0]["images"]), (len(train.names()), len(val.names())), len(objects[0]),
        max(objects[1].values(), default=0), val.paths(), overlap, notes,
    )  # fmt: skip


def _read_parts(options: Namespace) -> tuple[Annotated, Annotated, list[str]]:
    if options.data is None:
        found = {
            split: Part("coco", options[f"{split}_json"], (options[f"{split}_images"],)) for split in ("train", "val")
        }
        for part in found.values():
            if not part.annotations.is_file():
                raise ValueError(f"{part.annotations.absolute()}: no such file of annotations")
            if not part.images[0].is_dir():
                raise ValueError(f"{part.images[0].absolute()}: no such folder of images")
    else:
        found = find_parts(options.data)
    places = [*found.values()]
    if places[0].layout == "coco":
        if options.classes:
            raise ValueError("--classes is for YOLO's and VOC's layouts: COCO's files name their classes")
        parts, notes = [coco.read(place) for place in places], list[str]()
    else:
        contents, notes = (
            yolo.read(places, yolo.class_names(options.data, options.classes)) if places[0].layout == "yolo"
            else voc.read(places, options.classes)
        )  # fmt: skip
        parts = [Annotated(content, place.images[0]) for content, place in zip(contents, places, strict=True)]
    notes += filter(None, [coco.drop_group(parts)])
    if WHOLE in found:
        notes.append(describe_split(options.val_fraction, options.split_seed))
        train, val = coco.split(parts[0], options.val_fraction, options.split_seed)
    else:
        train, val = parts
        notes += filter(None, [coco.share_categories(train, val)])
    return train, val, notes


def _files(train: Annotated, val: Annotated, folder: Path, texts: Sequence[bytes]) -> tuple[str, str, str, str]:
    """Return annotations and images of both parts, after writing the annotations that are not the user's file."""
    files = []
    for part, text, name in ((train, texts[0], "train"), (val, texts[1], "val")):
        if part.file is None:
            write_text(folder / f"{name}.json", text.decode())
        files += [str((part.file or folder / f"{name}.json").absolute()), str(part.images.absolute())]
    return files[0], files[1], files[2], files[3]


def _classes(train: Annotated) -> list[str]:
    rows = sorted(train.content["categories"], key=lambda row: str(row.get("id")).zfill(20))
    return [str(row.get("name")) for row in rows]


def _check_classes(train: Annotated, val: Annotated) -> list[str]:
    """Return notes on classes without a test object, and on keypoints.

    Raises:
        ValueError: a class has test objects and no training object.
    """
    trained, tested = (
        {row.get("category_id") for row in part.content["annotations"] if not row.get("iscrowd")}
        for part in (train, val)
    )
    names = {row.get("id"): str(row.get("name")) for row in train.content["categories"]}
    if new := [name for i, name in names.items() if i in tested - trained]:
        raise ValueError(
            f"{some(new)}: objects in the test images and none in the training images, so AP would be 0 whatever the "
            "checkpoint: move images with such objects to the training images, or leave the class out"
        )
    left = [name for i, name in names.items() if i not in tested]
    notes = [f"{len(left)} of {len(names)} classes have no test object and so no AP: {some(left)}"] * bool(left)
    keypoints = sum(bool(row.get("keypoints")) for part in (train, val) for row in part.content["annotations"])
    return notes + [f"keypoints of {keypoints:,} objects are left out: boxes and masks are trained on"] * bool(
        keypoints
    )


def _sides(images: list[Row]) -> tuple[int, int]:
    """Return the median short and long side; 0 where the file does not say, which the check will refuse."""
    sizes = [sorted((image.get("width") or 0, image.get("height") or 0)) for image in images]
    return int(statistics.median(s[0] for s in sizes)), int(statistics.median(s[1] for s in sizes))


def _with_masks(rows: list[Row], notes: list[str]) -> bool:
    """Return whether all objects have masks that are more than their boxes; say why not, where some have."""
    rows = [row for row in rows if not row.get("iscrowd")]
    having = sum(bool(row.get("segmentation")) for row in rows)
    if not having:
        return False
    if having < len(rows):
        notes.append(f"{len(rows) - having} of {len(rows)} objects have no mask: boxes only")
        return False
    if all(_is_box(row) for row in rows):
        notes.append("all masks are rectangles equal to their boxes: boxes only")
        return False
    return True


def _is_box(row: Row) -> bool:
    """Return whether a mask is the four corners of the box of its object."""
    try:
        (polygon,), (x, y, width, height) = row["segmentation"], row["bbox"]
        corners = {*zip(polygon[::2], polygon[1::2], strict=True)}
        return corners == {(x, y), (x + width, y), (x, y + height), (x + width, y + height)}
    except (KeyError, TypeError, ValueError):
        return False


def describe(data: DetectionData) -> str:
    """Return the data set in words."""
    listed = ", ".join(map(escaped, data.classes[:5])) + ", ..." * (len(data.classes) > 5)
    kind = "boxes and masks" if data.masks else "boxes"
    return (
        f"{data.name}: {data.images[0]:,} training images ({data.images[0] - data.trained:,} without objects), "
        f"{data.images[1]:,} test images, {len(data.classes)} classes ({listed}), {kind}, median image "
        f"{data.sides[1]} x {data.sides[0]}, identity {data.identity}"
    )
