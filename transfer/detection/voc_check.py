"""Check a split of Pascal VOC before anything is trained: its list, annotations and images, and perfect detections."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.scan import scan_files
from transfer.detection.annotations import RARE, TOLERANCE
from transfer.detection.voc import Detection, VocImage, read_annotations, read_names, voc_image, voc_metrics
from transfer.headers import read_header


def check_voc(name: str, folder: Path, split: str, classes: Sequence[str], test: bool) -> tuple[str, list[str]]:
    """Check a split, e.g. VOC2007 and trainval.

    Args:
        name: of the data set.
        folder: holds Annotations, ImageSets and JPEGImages.
        split: name of the list in ImageSets/Main.
        classes: names of the classes.
        test: whether it is scored; else it is trained on.

    Returns:
        What was checked, in words, and the names of the classes that have objects.

    Raises:
        ValueError: names the file and how to mend it.
    """
    listed = folder / "ImageSets" / "Main" / f"{split}.txt"
    names = read_names(listed)
    files = [folder / "Annotations" / f"{entry}.xml" for entry in names]
    images = [folder / "JPEGImages" / f"{entry}.jpg" for entry in names]
    for paths in (files, images):
        absent = [path for path in paths if not path.is_file()]
        if absent:
            raise ValueError(
                f"{listed}: {len(absent):,} of {len(paths):,} names have no file; the first is {absent[0]}: add it, or "
                "remove its line"
            )
    found = scan_files(files, partial(read_annotations, classes=tuple(classes)), f"annotations of {name}")
    scan = scan_files(images, read_header, f"images of {name}")
    for file, row, size in zip(files, found, scan, strict=True):
        if row["size"] not in (None, size):
            stated = "{} x {}".format(*row["size"])
            raise ValueError(f"{file}: the image is {size[0]} x {size[1]} pixels, not {stated}: correct <size>")
        for number, (left, top, right, bottom) in enumerate(row["boxes"], 1):
            if min(left, top) < 1 - TOLERANCE or right > size[0] + TOLERANCE or bottom > size[1] + TOLERANCE:
                raise ValueError(
                    f"{file}: object {number} has the box {[left, top, right, bottom]}, which reaches beyond the "
                    f"{size[0]} x {size[1]} pixels, counted from 1: cut it at the image's edges"
                )
    truth = [voc_image(entry, row) for entry, row in zip(names, found, strict=True)]
    wanted = [~image.difficult if test else np.ones(len(image.labels), dtype=bool) for image in truth]
    objects = sum(int(mask.sum()) for mask in wanted)
    if not objects:
        what = "to find that is not difficult: AP would mean nothing" if test else "to train on"
        raise ValueError(f"{listed}: its {len(names):,} images have no object {what}; is it the right list?")
    notes = _score_perfect(listed, truth, classes) if test else []
    shown = {classes[i] for image, mask in zip(truth, wanted, strict=True) for i in image.labels[mask].tolist()}
    said = f"{name}: {scan.describe('images')}, {objects:,} objects" + ", AP 100 with perfect detections" * test
    return "; ".join([said, *notes]), [label for label in classes if label in shown]


def _score_perfect(listed: Path, truth: Sequence[VocImage], classes: Sequence[str]) -> list[str]:
    """Score detections that equal the annotations; return flaws that are rare, in words.

    Raises:
        ValueError: AP is not 100.
    """
    single, doubled = [], list[str]()
    for image in truth:
        rows = np.column_stack([image.labels, image.boxes])
        first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
        single.append(VocImage(image.name, image.size, image.boxes[first], image.labels[first], image.difficult[first]))
        doubled += [image.name] * (len(rows) - len(first))
    note = f"{len(doubled):,} objects have the class and the box of another" * bool(doubled)
    note += f", the first in {doubled[0]}.xml, and cannot be found" if doubled else ""
    if len(doubled) > RARE * sum(len(image.labels) for image in truth):
        raise ValueError(f"{listed}: {note}: remove them")
    detections: dict[int, list[Detection]] = {}
    for image in single:
        for label, box in zip(image.labels.tolist(), image.boxes, strict=True):
            detections.setdefault(label, []).append((image.name, 1.0, box))
    for eleven in (True, False):
        ap = voc_metrics(single, detections, classes, eleven)["AP"]
        if not ap > 100 - 1e-6:
            raise ValueError(f"{listed}: AP of detections equal to the annotations is {ap:.2f} and not 100")
    return [note] * bool(doubled)
