"""Metrics of a detector on COCO-style annotations, LVIS included, through faster-coco-eval."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask
from pycocotools import mask as rle

# Names of faster-coco-eval -> names of the field
METRICS = {
    "AP_all": "AP", "AP_50": "AP50", "AP_75": "AP75", "AP_small": "APs", "AP_medium": "APm", "AP_large": "APl",
    "APr": "APr", "APc": "APc", "APf": "APf",
}  # fmt: skip


def load_coco(annotations: str | dict[str, Any]) -> COCO:
    """Read annotations in COCO's format, a file or its content; say on stderr what is added to them (`complete`)."""
    content = (
        annotations if isinstance(annotations, dict) else json.loads(Path(annotations).read_text(encoding="utf-8"))
    )
    for line in complete(content):
        print(f"{'' if isinstance(annotations, dict) else f'{annotations}: '}{line}", file=sys.stderr)
    return COCO(content, print_function=_silent)


def complete(content: dict[str, Any]) -> list[str]:
    """Add what COCO's evaluation needs to the annotations that lack it; return what was added, in words.

    `area` is that of the mask, as in COCO's own files, or of the box where there is no mask: without it,
    faster-coco-eval counts every object as small. Annotations are numbered anew from 1: the evaluation takes an id of 0
    for "no match".
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    added: Counter[str] = Counter()
    for number, row in enumerate(content["annotations"], 1):
        row["id"] = number
        if "area" not in row:
            segment = row.get("segmentation")
            row["area"] = mask_area(segment, *sizes[row["image_id"]]) if segment else math.prod(row["bbox"][2:])
            added[f"area, computed from their {'masks' if segment else 'boxes'}"] += 1
        if "iscrowd" not in row:
            row["iscrowd"] = 0
        if "keypoints" in row and "num_keypoints" not in row:
            row["num_keypoints"] = sum(visible > 0 for visible in row["keypoints"][2::3])
            added["num_keypoints, counted from their keypoints"] += 1
    return [f"{count:,} annotations have no {what}" for what, count in added.items()]


def mask_area(segmentation: Any, width: int, height: int) -> float:
    """Return the pixels of a mask in COCO's format, polygons or RLE, as the evaluation draws it."""
    return float(rle.area(mask.segmToRle(segmentation, width, height)))  # faster-coco-eval's own takes longer


def perfect_detections(truth: COCO, kind: str) -> list[dict[str, Any]]:
    """Return detections equal to the annotations, in COCO's results format; crowds are left out."""
    rows = [row for row in truth.dataset["annotations"] if not row["iscrowd"]]
    part: dict[str, Callable[[dict[str, Any]], Any]] = {
        "bbox": lambda row: {"bbox": row["bbox"]},
        "segm": lambda row: {"segmentation": truth.annToRLE(row)},
        "keypoints": lambda row: {"keypoints": row["keypoints"]},
    }
    return [{"image_id": r["image_id"], "category_id": r["category_id"], "score": 1.0} | part[kind](r) for r in rows]


def coco_metrics(
    truth: COCO, detections: list[dict[str, Any]], kind: str, limit: int = 100, lvis: bool = False, sizes: bool = True
) -> dict[str, float]:
    """Return AP and its parts in %, and AP-NAME of each class; NaN where there are no objects.

    Args:
        truth: annotations.
        detections: rows in COCO's results format.
        kind: bbox, segm or keypoints.
        limit: most detections per image that count; for keypoints COCO's own 20.
        lvis: evaluate as LVIS does: by the classes that each image lists, and by frequency of the classes.
        sizes: also score small, medium and large objects on their own.
    """
    if kind == "segm":  # else the area of the box would decide whether a mask is small
        detections = [{key: value for key, value in row.items() if key != "bbox"} for row in detections]
    found = truth.loadRes(detections)
    evaluation = COCOeval_faster(truth, found, kind, print_function=_silent, lvis_style=lvis)
    if kind != "keypoints":
        evaluation.params.maxDets = [1, 10, limit] if sizes and not lvis else [limit]
    if not sizes:
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = {METRICS[name]: value for name, value in evaluation.stats_as_dict.items() if name in METRICS}
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, limit); -1: no objects
    names = [category["name"] for category in truth.loadCats(evaluation.params.catIds)]
    if len(names) > 1:
        for i, name in enumerate(names):
            curve = precision[:, :, i, 0, -1]
            values[f"AP-{name}"] = float(np.mean(curve[curve > -1])) if (curve > -1).any() else -1.0
    return {name: 100 * value if value > -1 else math.nan for name, value in values.items()}


def fractions(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Flatten {kind: {metric: %}} to kind/metric -> fraction; omit undefined ones, e.g. APl without large objects."""
    rows = {f"{kind}/{name}": value / 100 for kind, values in results.items() for name, value in values.items()}
    return {name: value for name, value in rows.items() if math.isfinite(value)}


def _silent(*arguments: Any, **options: Any) -> None:
    pass
