"""Read data sets in VOC's layout: an xml file per image.

An object that is `difficult` need not be found: it becomes a crowd region. By VOC's definition coordinates count from 1
and right and bottom lie inside the box. Several tools count from 0: a coordinate below 1 or with a fraction shows it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.files import listed_names
from common.folders import walk
from common.scan import scan_files
from transfer.detection.voc import read_annotations, read_names
from transfer.headers import read_header
from transfer.own_data.layouts import Content, Part


def read(parts: Sequence[Part], file: Path | None) -> tuple[list[Content], list[str]]:
    """Return the content of each part in COCO's format, and notes.

    Args:
        parts: where they lie.
        file: one class name per line; None: the sorted names of all objects.

    Raises:
        ValueError: names the file, the object, and how to mend it.
    """
    files = [_files(part) for part in parts]
    if file and not file.is_file():
        raise ValueError(f"--classes {file}: no such file")
    paths = [path for part in files for path in part]
    classes = (
        listed_names(file) if file
        else sorted({name for names in scan_files(paths, object_names, "xml files") for name in names})
    )  # fmt: skip
    found = [scan_files(part, partial(read_annotations, classes=classes), "xml files") for part in files]
    corners = [value for part in found for entry in part for box in entry["boxes"] for value in box]
    from_zero = any(value < 1 or value != int(value) for value in corners)
    contents = [_content(*arguments, classes, from_zero) for arguments in zip(parts, files, found, strict=True)]
    if not from_zero:
        return contents, []
    return contents, ["coordinates below 1 or with a fraction: read as counted from 0, not from 1 as VOC defines"]


def _files(part: Part) -> list[Path]:
    if part.names is None:
        return sorted(part.annotations.glob("*.xml"))
    return [part.annotations / f"{name}.xml" for name in sorted(read_names(part.names))]


def object_names(path: Path) -> list[str]:
    """Return the class names of the objects in an xml file."""
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise ValueError(f"{path}: not xml ({error}): write it anew") from error
    return sorted({name for entry in root.findall("object") if (name := (entry.findtext("name") or "").strip())})


def _content(part: Part, files: Sequence[Path], found: Any, classes: list[str], from_zero: bool) -> Content:
    stems: dict[str, tuple[Path, str]] = {}
    for folder in reversed(part.images):
        for name in walk(folder).images:
            stems[Path(name).stem] = folder, name
    absent = [file for file in files if file.stem not in stems]
    if absent:
        raise ValueError(f"{absent[0]}: {len(absent)} of {len(files)} xml files have no image of their name")
    base = part.images[0]
    paths = [stems[file.stem][0] / stems[file.stem][1] for file in files]
    sizes = scan_files(paths, read_header, "images")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for path, (width, height), entry in zip(paths, sizes, found, strict=True):
        name = str(path.relative_to(base) if path.is_relative_to(base) else path.absolute())
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        for box, label, difficult in zip(entry["boxes"], entry["labels"], entry["difficult"], strict=True):
            left, top, right, bottom = box if from_zero else (box[0] - 1, box[1] - 1, *box[2:])
            annotations.append({
                "id": len(annotations) + 1, "image_id": images[-1]["id"], "category_id": label + 1,
                "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                "iscrowd": int(difficult),
            })  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}
