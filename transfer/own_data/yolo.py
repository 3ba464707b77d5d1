"""Read data sets in YOLO's layout: a text file per image, a line per object, coordinates as fractions of the image.

A line is `class x y width height`, with the centre of the box, or `class x y x y x y ...`, a polygon. An image without
a file, or with an empty one, has no objects. The format has no crowds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from common.files import listed_names, text_lines
from common.folders import some, walk
from common.scan import scan_files
from transfer.headers import read_header
from transfer.own_data.layouts import YOLO_NAMES, Content, Part

OUTSIDE = 0.01  # fraction of the image by which coordinates may leave it; they are cut
DIGITS = 3  # of pixels: files have about six of fractions


def class_names(data: Path, file: Path | None) -> list[str]:
    """Return the names of the classes, from --classes FILE or what lies in the folder of the data set.

    Raises:
        ValueError: there is no list, or it is malformed.
    """
    files = [file] if file else [
        *(path for suffix in ("*.yaml", "*.yml") for path in sorted(data.glob(suffix))),
        *(path for name in YOLO_NAMES for path in (data / name, data / "train" / name, data / "labels" / name)),
    ]  # fmt: skip
    for path in files:
        if path == file and not path.is_file():
            raise ValueError(f"--classes {path}: no such file")
        if path.is_file() and (names := _names_in(path)):
            return names
    raise ValueError(
        f"{data}: YOLO's files number the classes, and no data.yaml (names: [...]) or classes.txt names them; give one "
        "name per line with --classes FILE"
    )


def _names_in(path: Path) -> list[str]:
    if path.suffix not in (".yaml", ".yml"):
        return listed_names(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    names = content.get("names", []) if isinstance(content, dict) else []
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"{path}: `names` numbers its classes {sorted(names)}: number them from 0 without gaps")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise ValueError(f"{path}: `names` is no list of class names")
    return [str(name) for name in names]


def read(parts: Sequence[Part], classes: list[str]) -> tuple[list[Content], list[str]]:
    """Return the content of each part in COCO's format, and notes.

    Raises:
        ValueError: names the file, the line, and how to mend it.
    """
    read_one = [_read(part, classes) for part in parts]
    return [content for content, _ in read_one], [note for _, note in read_one if note]


def _read(part: Part, classes: list[str]) -> tuple[Content, str]:
    folder = part.images[0]
    names = sorted(walk(folder).images)
    if not names:
        raise ValueError(f"{folder}: no images")
    sizes = scan_files([folder / name for name in names], read_header, "images")
    files = [part.annotations / Path(name).with_suffix(".txt") for name in names]
    found = [i for i, file in enumerate(files) if file.is_file()]
    there = {path for path in part.annotations.rglob("*.txt") if path.name not in YOLO_NAMES}
    if alone := sorted(there - set(files)):
        raise ValueError(
            f"{alone[0]}: {len(alone)} label files have no image of their name in {folder}: add the images"
        )
    rows = scan_files([files[i] for i in found], partial(read_labels, classes=len(classes)), "label files")
    objects = dict(zip(found, rows, strict=True))
    images = [
        {"id": i, "file_name": name, "width": width, "height": height}
        for i, (name, (width, height)) in enumerate(zip(names, sizes, strict=True), 1)
    ]
    annotations: list[dict[str, Any]] = []
    for i, image in enumerate(images):
        for label, numbers in objects.get(i, []):
            row = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": label + 1, "iscrowd": 0}
            annotations.append(row | _shape(numbers, image["width"], image["height"]))
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    missing = [names[i] for i in range(len(names)) if i not in objects]
    note = f"{len(missing)} images of {folder} have no label file and so no objects ({some(missing)})" * bool(missing)
    return {"images": images, "annotations": annotations, "categories": categories}, note


def read_labels(path: Path, classes: int) -> list[tuple[int, list[float]]]:
    """Return class and coordinates, four or at least six fractions, of each line of a file.

    Raises:
        ValueError: names the line.
    """
    rows = []
    for number, line in enumerate(text_lines(path), 1):
        words, where = line.split(), f"{path}:{number}"
        if not words:
            continue
        try:
            label, numbers = int(words[0]), [float(word) for word in words[1:]]
        except ValueError as error:
            raise ValueError(f"{where}: {line[:60]!r}: must be a class number and fractions") from error
        if not 0 <= label < classes:
            raise ValueError(f"{where}: class {label}, and there are {classes}, from 0: is the list of classes whole?")
        if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
            raise ValueError(
                f"{where}: {len(numbers)} numbers after the class: four are a box, an even number from six a polygon "
                "(files of predictions have a fifth, keypoints more)"
            )
        ends = numbers if len(numbers) != 4 else _corners(numbers)
        if not all(math.isfinite(n) and -OUTSIDE <= n <= 1 + OUTSIDE for n in ends):
            raise ValueError(f"{where}: {line[:60]!r} reaches beyond its image: coordinates are fractions, 0 to 1")
        if len(numbers) == 4 and min(numbers[2:]) <= 0:
            raise ValueError(f"{where}: {line[:60]!r}: a box without width or height: remove the line")
        rows.append((label, numbers))
    return rows


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def _shape(numbers: Sequence[float], width: int, height: int) -> dict[str, Any]:
    """Return `bbox`, and `area` or `segmentation`, in pixels."""
    ends = _corners(numbers) if len(numbers) == 4 else numbers
    xs = [round(min(max(x, 0), 1) * width, DIGITS) for x in ends[::2]]
    ys = [round(min(max(y, 0), 1) * height, DIGITS) for y in ends[1::2]]
    box = [min(xs), min(ys), round(max(xs) - min(xs), DIGITS), round(max(ys) - min(ys), DIGITS)]
    if len(numbers) == 4:
        return {"bbox": box, "area": box[2] * box[3]}
    return {"bbox": box, "segmentation": [[value for point in zip(xs, ys, strict=True) for value in point]]}
