"""Check a split of Cityscapes for instance segmentation before anything is trained."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from common.scan import scan_files
from transfer.headers import read_header

SMALLEST = 100  # pixels of an instance that counts, as cityscapesscripts has it
CROWDS = 1000  # ids below it are groups


def check_cityscapes(name: str, images: Path, truth: Path, test: bool) -> tuple[str, list[str]]:
    """Check the images and annotations of a split.

    Args:
        name: of the data set.
        images: its folder below leftImg8bit.
        truth: its folder below gtFine.
        test: whether it is scored, which reads instanceIds.png too; else it is trained on, by polygons.json.

    Returns:
        What was checked, in words, and the names of the classes that have objects.

    Raises:
        ValueError: names the file and how to mend it.
    """
    found = sorted(images.glob("*/*"))
    suffix = "_leftImg8bit.png"
    for path in found:
        if not path.name.endswith(suffix):
            raise ValueError(f"{path}: its name does not end with {suffix}: move it out of {images}")
    stems = [truth / path.parent.name / path.name.removesuffix(suffix) for path in found]
    polygons, instances = (
        [stem.with_name(f"{stem.name}_gtFine_{kind}") for stem in stems]
        for kind in ("polygons.json", "instanceIds.png")
    )
    absent = [file for file in [*polygons, *instances * test] if not file.is_file()]
    if absent or not found:
        first = absent[0] if absent else f"{images}/*/*{suffix}"
        raise ValueError(f"{first}: missing, with {len(absent):,} files of {len(found):,} images: unpack the set again")
    if test and (more := sorted({*truth.glob("*/*_gtFine_instanceIds.png")} - {*instances})):
        raise ValueError(f"{more[0]}: there is no image for it, and the evaluation wants one: unpack the set again")
    scan = scan_files(found, read_header, f"images of {name}")
    rows = scan_files(polygons, inspect_polygons, f"polygons of {name}")
    _compare(polygons, rows, scan)
    if test:  # the evaluation reads other files than training
        rows = scan_files(instances, inspect_instances, f"instances of {name}")
        _compare(instances, rows, scan)
    classes = sorted({label for row in rows for label in row["labels"]})
    objects = sum(len(row["labels"]) for row in rows)
    if not objects:
        raise ValueError(f"{truth}: no object in {len(found):,} images; is it the right folder?")
    if test:
        _score_perfect(truth, {str(file): row["instances"] for file, row in zip(instances, rows, strict=True)})
    said = f"{name}: {scan.describe('images')}, {objects:,} objects" + ", AP 100 with perfect detections" * test
    return said, classes


def _compare(files: Sequence[Path], rows: Sequence[dict[str, Any]], sizes: Sequence[list[int]]) -> None:
    for file, row, size in zip(files, rows, sizes, strict=True):
        if row["size"] != size:
            raise ValueError(f"{file}: {row['size']} is not the size {size} of its image: unpack the set again")


def inspect_polygons(file: Path) -> dict[str, Any]:
    """Read what training reads; return `size`, and `labels`, the name of each object's class."""
    names = importlib.import_module("cityscapesscripts.helpers.labels").name2label
    content = json.loads(file.read_text(encoding="utf-8"))
    try:
        size, objects = [content["imgWidth"], content["imgHeight"]], content["objects"]
        rows = [(row["label"], row["polygon"]) for row in objects if "deleted" not in row]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: no imgWidth, imgHeight and objects with label and polygon: {error}") from error
    labels = []
    for name, polygon in rows:
        label = names.get(name, names.get(name.removesuffix("group")))
        if label is None:
            raise ValueError(f"{file}: {name!r} is none of Cityscapes' labels: rename it")
        points = np.array(polygon, dtype=float)
        if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 3 or not np.isfinite(points).all():
            raise ValueError(f"{file}: a {name} has the polygon {polygon!r:.60}: write three or more points [x, y]")
        if label.hasInstances and not label.ignoreInEval and not name.endswith("group"):
            labels.append(label.name)
    return {"size": size, "labels": labels}


def inspect_instances(file: Path) -> dict[str, Any]:
    """Read what the evaluation reads, through its own reader.

    Returns:
        `size`; `labels`, the name of each object's class; `instances`, those of the evaluation by class.
    """
    with Image.open(file) as image:
        mode, size = image.mode, [*image.size]
    if not mode.startswith("I"):
        raise ValueError(f"{file}: mode {mode}: instance ids have 16 bits a pixel; unpack the set again")
    reader = importlib.import_module("cityscapesscripts.evaluation.instances2dict")
    try:
        ((_, found),) = reader.instances2dict([str(file)]).items()
    except KeyError as error:
        raise ValueError(f"{file}: label id {error} is none of Cityscapes': write it with cityscapesscripts") from error
    scripts = scripts_for_evaluation()
    instances = {label: found[label] for label in scripts.args.instLabels}
    labels = [label for label, rows in instances.items() for row in rows if _counts(row)]
    return {"size": size, "labels": labels, "instances": instances}


def _counts(row: dict[str, Any]) -> bool:
    return row["instID"] >= CROWDS and row["pixelCount"] >= SMALLEST


def scripts_for_evaluation() -> Any:
    """Return cityscapesscripts' module of the evaluation with the classes set that it scores."""
    scripts: Any = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    scripts.setInstanceLabels(scripts.args)
    return scripts


@contextlib.contextmanager
def today() -> Iterator[Any]:
    """Let cityscapesscripts 2.3.0 run: it calls `numpy.in1d`, which numpy 2.4 removed, and writes numpy's numbers."""
    scripts = scripts_for_evaluation()
    evaluate = scripts.evaluateMatches

    def write(content: Any, path: str) -> None:
        if not Path(path).is_absolute():  # all matches, once more, in the current folder
            return
        plain = json.dumps(content, default=lambda value: getattr(value, "__dict__", None) or int(value))
        Path(path).write_text(plain, encoding="utf-8")

    def each(matches: Any, settings: Any) -> np.ndarray:
        """Return AP of (distance, class, IoU), one after the other: 0 where all detections lie on ignored pixels."""
        ap = np.zeros((1, len(settings.instLabels), len(settings.overlaps)))
        for (_, i, k), _ in np.ndenumerate(ap):
            one = copy.copy(settings)
            one.instLabels, one.overlaps = settings.instLabels[i : i + 1], settings.overlaps[k : k + 1]
            with contextlib.suppress(IndexError):  # of the last of no detections
                ap[0, i, k] = evaluate(matches, one)[0, 0, 0]
        return ap

    with (
        mock.patch.object(np, "in1d", np.isin, create=True),
        mock.patch.multiple(scripts, writeDict2JSON=write, evaluateMatches=each),
    ):
        yield scripts


def _score_perfect(truth: Path, images: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Score masks that equal the instances, with the evaluation's own code."""
    scripts, matches = scripts_for_evaluation(), {}
    for name, instances in images.items():
        wanted = {label: [_match(row) for row in rows] for label, rows in instances.items()}
        predicted = {label: [_match(row) for row in rows if _counts(row)] for label, rows in instances.items()}
        for label in instances:
            for row in wanted[label]:
                row["matchedPred"] = [other for other in predicted[label] if other["instID"] == row["instID"]]
            for row in predicted[label]:
                row["matchedGt"] = [other for other in wanted[label] if other["instID"] == row["instID"]]
        matches[name] = {"groundTruth": wanted, "prediction": predicted}
    ap = 100 * scripts.computeAverages(scripts.evaluateMatches(matches, scripts.args), scripts.args)["allAp"]
    if math.isnan(ap) or ap < 100 - 1e-6:
        raise ValueError(f"{truth}: AP of masks equal to the instances is {ap:.2f} and not 100; unpack the set again")


def _match(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "intersection": row["pixelCount"], "confidence": 1.0, "voidIntersection": 0}
