"""Pascal VOC: annotations as the devkit defines them, and AP over the classes that the test images show.

Source: the development kit documents of VOC 2007 and 2012. `difficult` and `truncated` may be absent and are then 0;
coordinates count from 1, and the right and bottom ones are inside the box.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

IOUS = np.arange(50, 100, 5) / 100


@dataclass(frozen=True)
class VocImage:
    """The annotations of an image.

    Attributes:
        name: of its files, without a suffix.
        size: width and height, None where the file does not say.
        boxes: (N, 4) left, top, right, bottom, as written in the file.
        labels: (N,) class indices.
        difficult: (N,) whether an object need not be found.
    """

    name: str
    size: tuple[int, int] | None
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def read_names(file: Path) -> list[str]:
    """Read the list of a split, one name a line; blank lines and blanks at the ends of lines mean nothing.

    Raises:
        ValueError: names the line.
    """
    names: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if len(words) > 1:
            raise ValueError(f"{file}: line {number}, {line!r}: write one name a line; lists of a class have two words")
        names += words
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if not names:
        raise ValueError(f"{file}: no names: write one a line, without .jpg")
    if count > 1:
        raise ValueError(f"{file}: {name} is listed {count} times and would count as so many images: list it once")
    return names


def read_annotations(file: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Read an xml file; return `size`, `boxes`, `labels` and `difficult` as lists.

    Raises:
        ValueError: names the file, the object, and how to mend it.
    """
    try:
        root = ET.parse(file).getroot()
    except ET.ParseError as error:
        raise ValueError(f"{file}: not xml ({error}): write it anew") from error
    found: dict[str, Any] = {"size": None, "boxes": [], "labels": [], "difficult": []}
    if root.find("size") is not None:
        found["size"] = [int(_number(file, root, f"size/{key}", "the image")) for key in ("width", "height")]
    for number, entry in enumerate(root.findall("object"), 1):
        name, which = (entry.findtext("name") or "").strip(), f"object {number}"
        if name not in classes:
            raise ValueError(f"{file}: {which} is {name!r}, none of the classes {', '.join(classes)}: rename it")
        box = [_number(file, entry, f"bndbox/{key}", which) for key in ("xmin", "ymin", "xmax", "ymax")]
        if box[2] < box[0] or box[3] < box[1]:
            raise ValueError(f"{file}: {which} ({name}) has the box {box}, not left, top, right, bottom: mend it")
        flag = (entry.findtext("difficult") or "0").strip()
        if flag not in ("0", "1"):
            raise ValueError(f"{file}: {which} has difficult {flag!r}: write 0 or 1, or leave it out")
        found["boxes"].append(box)
        found["labels"].append(list(classes).index(name))
        found["difficult"].append(flag == "1")
    return found


def _number(file: Path, entry: ET.Element, key: str, which: str) -> float:
    text = entry.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{file}: {which} has {key.replace('/', '.')} {text!r}: write a number of pixels")
    return value


def voc_image(name: str, found: Mapping[str, Any]) -> VocImage:
    """Return what `read_annotations` found as arrays."""
    boxes = np.array(found["boxes"], dtype=float).reshape(-1, 4)
    labels, difficult = np.array(found["labels"], dtype=int), np.array(found["difficult"], dtype=bool)
    return VocImage(name, found["size"] and tuple(found["size"]), boxes, labels, difficult)


def read_voc(folder: Path, split: str, classes: Sequence[str]) -> list[VocImage]:
    """Read the annotations of a split, e.g. VOC2007 and test."""
    names = read_names(folder / "ImageSets" / "Main" / f"{split}.txt")
    return [voc_image(name, read_annotations(folder / "Annotations" / f"{name}.xml", classes)) for name in names]


Detection = tuple[str, float, Sequence[float]]  # image, score, and left, top, right, bottom counted from 1


def voc_metrics(
    truth: Sequence[VocImage], detections: Mapping[int, Iterable[Detection]], classes: Sequence[str], eleven: bool
) -> dict[str, float]:
    """Return AP, AP50 and AP75 in %, and AP-NAME of each class; NaN for classes without an object to find.

    Args:
        truth: annotations of the test images.
        detections: of each class index.
        classes: their names.
        eleven: average precision at 11 recalls, as VOC 2007 does; else the area under the curve, as since 2010. The
            latter is also returned for the former, as `area-...`.
    """
    table = [_class_ap(truth, list(detections.get(label, ())), label) for label in range(len(classes))]
    values: dict[str, float] = {}
    for prefix, way in (("", 0 if eleven else 1), ("area-", 1)):
        ap = 100 * np.array([pair[way] for pair in table])  # (class, IoU)
        shown = ap[~np.isnan(ap[:, 0])]
        means = shown.mean(0) if len(shown) else np.full(len(IOUS), math.nan)
        values |= {f"{prefix}AP": means.mean(), f"{prefix}AP50": means[0], f"{prefix}AP75": means[5]}
        values |= {f"{prefix}AP-{name}": row.mean() for name, row in zip(classes, ap, strict=True)}
    return {name: float(value) for name, value in values.items()}


def _class_ap(truth: Sequence[VocImage], found: list[Detection], label: int) -> tuple[np.ndarray, np.ndarray]:
    """Return AP of a class at each of IOUS, at 11 recalls and as area; NaN without an object to find.

    Detections are matched from the highest score on, each with the object that it overlaps most. Of equal scores the
    one that was given first comes first.
    """
    objects = {image.name: np.flatnonzero(image.labels == label) for image in truth}
    boxes = {image.name: image.boxes[objects[image.name]] for image in truth}
    difficult = {image.name: image.difficult[objects[image.name]] for image in truth}
    free = {name: np.ones((len(IOUS), len(chosen)), dtype=bool) for name, chosen in objects.items()}
    positives = sum(int((~hard).sum()) for hard in difficult.values())
    if not positives:
        return np.full(len(IOUS), math.nan), np.full(len(IOUS), math.nan)
    hits, misses = np.zeros((2, len(IOUS), len(found)))
    for k, i in enumerate(np.argsort([-score for _, score, _ in found], kind="stable")):
        name, _, box = found[i]
        overlap = _overlaps(boxes[name], np.asarray(box, dtype=float))
        best = int(overlap.argmax()) if overlap.size else 0
        near = overlap[best] > IOUS if overlap.size else np.zeros(len(IOUS), dtype=bool)
        misses[:, k] = ~near
        if near.any() and not difficult[name][best]:
            first = near & free[name][:, best]
            hits[:, k], misses[:, k] = first, ~first
            free[name][near, best] = False
    hits, misses = hits.cumsum(1), misses.cumsum(1)
    recall, precision = hits / positives, hits / np.maximum(hits + misses, np.finfo(float).eps)
    pairs = [(_eleven(r, p), _area(r, p)) for r, p in zip(recall, precision, strict=True)]
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


def _overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the IoU of (N, 4) boxes with one; a side is right - left + 1 pixels long."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + 1
    common = np.maximum(sides, 0).prod(1)
    return common / ((boxes[:, 2:] - boxes[:, :2] + 1).prod(1) + (box[2:] - box[:2] + 1).prod() - common)


def _eleven(recall: np.ndarray, precision: np.ndarray) -> float:
    return sum(precision[recall >= least].max(initial=0) / 11 for least in np.arange(0, 1.1, 0.1))


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * best).sum())
