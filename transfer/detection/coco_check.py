"""Check annotation files in COCO's format, LVIS's included, and their images before anything is trained.

What a detector is trained on or scored against is read as the evaluation reads it, and scored with detections equal to
the annotations: AP has to be 100.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.scan import in_workers, scan_files
from transfer.detection.annotations import Annotations, Needs, Row, column, unique
from transfer.detection.evaluation import coco_metrics, complete, load_coco, perfect_detections
from transfer.headers import read_header

IMAGES_PER_PART = 2500  # that are scored together
PARALLEL = 20_000  # annotations from which on worker processes score a file


def check_coco(name: str, file: Path, images: Path, needs: Needs) -> tuple[str, list[str]]:
    """Check an annotation file and the header of every image that it names.

    Args:
        name: of the data set.
        file: annotations in COCO's format.
        images: folder of the images.
        needs: of the task.

    Returns:
        What was checked, in words, and the names of the classes that have objects.

    Raises:
        ValueError: names the file, the annotation, and how to mend it.
    """
    found = scan_files([file], partial(inspect_annotations, needs=needs), f"annotations of {name}")[0]
    paths = [images / image for image, _, _ in found["images"]]
    scan = scan_files(paths, read_header, f"images of {name}")
    for path, size, (_, *stated) in zip(paths, scan, found["images"], strict=True):
        if size != stated:
            raise ValueError(
                f"{file}: {path.name} is {size[0]} x {size[1]} pixels and its entry says {stated[0]} x {stated[1]}: "
                f"correct its width and height, or restore {path}"
            )
    said = [f"{name}: {scan.describe('images')}, {found['objects']:,} objects, AP 100 with perfect detections"]
    return "; ".join([*said, *found["notes"]]), found["classes"]


def inspect_annotations(file: Path, needs: Needs) -> dict[str, Any]:
    """Check an annotation file as far as that needs no images.

    Returns:
        `images`: [file name, width, height] of each. `objects`: their number, without crowds. `classes`: names of the
        classes that have objects. `notes`: flaws that are rare, and what the evaluation adds, in words.

    Raises:
        ValueError: names the file, the annotation, and how to mend it.
    """
    collects = gc.isenabled()
    gc.disable()  # it would look at the millions of new lists again and again
    try:
        return _inspect(file, needs)
    finally:
        if collects:
            gc.enable()


def _inspect(file: Path, needs: Needs) -> dict[str, Any]:
    content = read_sections(file)
    names = _check_categories(file, content["categories"], needs)
    listed = _check_images(file, content["images"], needs)
    nothing = "no object to find: AP would mean nothing" if needs.test else "no object to train on"
    if not content["annotations"]:
        raise ValueError(f"{file}: no annotations, so {nothing}; is it the right file?")
    table = Annotations(file, content, needs)
    kept = table.check()
    objects = kept & ~table.crowd
    if not objects.any():
        raise ValueError(f"{file}: {len(kept):,} annotations, crowds included, and {nothing}; is it the right file?")
    if needs.test:
        table.notes += [*table.crowded(), *complete(content)]
    score_perfect(content, table, kept)
    counts = Counter(np.unique(table.categories[objects]).tolist())
    return {
        "images": listed, "objects": int(objects.sum()), "classes": [names[i] for i in names if i in counts],
        "notes": table.notes,
    }  # fmt: skip


def read_sections(file: Path) -> dict[str, list[Row]]:
    """Read an annotation file, a JSON object with lists of objects under images, annotations and categories."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON in UTF-8 ({error}): download or write it again") from error
    for section in ("images", "annotations", "categories"):
        rows = content.get(section) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(
                f'{file}: no list of objects under "{section}": COCO\'s instances and keypoints files have images, '
                "annotations and categories"
            )
    return content


def _check_categories(file: Path, rows: Sequence[Row], needs: Needs) -> dict[int, str]:
    """Return the name of each category id, in order of the ids."""
    ids = column(file, "categories", rows, "id", int)
    names = column(file, "categories", rows, "name", str)
    unique(file, "categories", "id", ids)
    unique(file, "categories", "name", names)
    found, wanted = dict(sorted(zip(ids, names, strict=True))), dict(needs.categories)
    if needs.lvis:  # names are spelled in several ways, ids are not
        wanted = {i: found.get(i, "?") for i in range(1, needs.classes + 1)}
        column(file, "categories", rows, "frequency", str)
    if wanted and found != wanted:
        odd = [f"{i} {name!r}" for i, name in found.items() if wanted.get(i) != name][:3]
        lost = [f"{i} {name!r}" for i, name in wanted.items() if found.get(i) != name][:3]
        raise ValueError(
            f"{file}: its {len(found)} categories are not the {len(wanted)} of the task's data set (unknown: "
            f"{', '.join(odd) or 'none'}; missing: {', '.join(lost) or 'none'}): put the data set's own file there"
        )
    if len(found) != needs.classes:
        raise ValueError(
            f"{file}: {len(found)} categories, and the task has {needs.classes} classes: set the number of classes of "
            f"the model to {len(found)}"
        )
    return found


def _check_images(file: Path, rows: Sequence[Row], needs: Needs) -> list[tuple[str, int, int]]:
    """Return file name below the folder of images, width and height of each image."""
    unique(file, "images", "id", column(file, "images", rows, "id", int))
    names = column(file, "images", rows, "coco_url" if needs.lvis else "file_name", str)
    if needs.lvis:
        names = ["/".join(name.split("/")[-2:]) for name in names]
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            column(file, "images", rows, key, list)
    unique(file, "images", "file_name", names)
    sizes = [column(file, "images", rows, key, int) for key in ("width", "height")]
    return list(zip(names, *sizes, strict=True))


def score_perfect(content: dict[str, list[Row]], table: Annotations, kept: np.ndarray) -> None:
    """Score detections that equal the annotations, part by part of the images, with the evaluation's own code.

    Raises:
        ValueError: AP is not 100.
    """
    count = len(content["images"])
    items = [range(i, min(i + IMAGES_PER_PART, count)) for i in range(0, count, IMAGES_PER_PART)]
    few = 1 if len(kept) > PARALLEL else len(items) + 1
    score = partial(_score_test if table.needs.test else _score_training, content, table, kept)
    for scores in in_workers(score, items, f"AP of {table.file.name}", few, "part"):
        for kind, ap in scores.items():
            if not (math.isnan(ap) or ap > 100 - 1e-6):
                raise ValueError(
                    f"{table.file}: {kind}/AP of detections equal to the annotations is {ap:.2f} and not 100: the "
                    "evaluation reads the annotations otherwise than they are written"
                )


def _score_test(content: dict[str, list[Row]], table: Annotations, kept: np.ndarray, images: range) -> dict[str, float]:
    """Return AP in % of detections that equal the annotations of some images, by kind, as the task scores it."""
    chosen = np.flatnonzero(kept & (table.owners >= images.start) & (table.owners < images.stop))
    rows = [content["annotations"][i] for i in chosen]
    if not rows:
        return {}
    part = {**content, "images": [content["images"][i] for i in images], "annotations": rows}
    most = max(Counter((row["image_id"], row["category_id"]) for row in rows).values())
    truth, needs = load_coco(part), table.needs
    return {
        kind: coco_metrics(truth, perfect_detections(truth, kind), kind, max(most, 100), needs.lvis)["AP"]
        for kind in needs.kinds
    }


def _score_training(
    content: dict[str, list[Row]], table: Annotations, kept: np.ndarray, images: range
) -> dict[str, float]:
    """Return AP in % of boxes that equal the annotations of some images, all as one class.

    Pairs of each image and class would take minutes on COCO's train2017. Masks are drawn by `Annotations.check`.
    """
    chosen = np.flatnonzero(kept & (table.owners >= images.start) & (table.owners < images.stop))
    if not chosen.size:
        return {}
    columns = (table.owners[chosen].tolist(), table.boxes[chosen].tolist(), table.crowd[chosen].tolist())
    rows = [
        {"image_id": owner, "category_id": 1, "bbox": box, "area": 1.0, "iscrowd": int(crowd)}
        for owner, box, crowd in zip(*columns, strict=True)
    ]
    named = [{"id": i, "width": 0, "height": 0} for i in images]
    truth = load_coco({"images": named, "annotations": rows, "categories": [{"id": 1, "name": "object"}]})
    most = int(np.bincount(table.owners[chosen]).max())
    return {"bbox": coco_metrics(truth, perfect_detections(truth, "bbox"), "bbox", most, sizes=False)["AP"]}
