"""Metrics of a detector on COCO-style annotations, LVIS included, through faster-coco-eval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

# Names of faster-coco-eval -> names of the field
METRICS = {
    "AP_all": "AP", "AP_50": "AP50", "AP_75": "AP75", "AP_small": "APs", "AP_medium": "APm", "AP_large": "APl",
    "APr": "APr", "APc": "APc", "APf": "APf",
}  # fmt: skip


def load_coco(annotations: str) -> COCO:
    """Read an annotation file in COCO's format."""
    return COCO(annotations, print_function=_silent)


def coco_metrics(
    truth: COCO, detections: list[dict[str, Any]], kind: str, limit: int = 100, lvis: bool = False
) -> dict[str, float]:
    """Return AP and its parts in %, and AP-NAME of each class; NaN where there are no objects.

    Args:
        truth: annotations.
        detections: rows in COCO's results format.
        kind: bbox, segm or keypoints.
        limit: most detections per image that count; for keypoints COCO's own 20.
        lvis: evaluate as LVIS does: by the classes that each image lists, and by frequency of the classes.
    """
    if kind == "segm":  # else the area of the box would decide whether a mask is small
        detections = [{key: value for key, value in row.items() if key != "bbox"} for row in detections]
    found = truth.loadRes(detections)
    evaluation = COCOeval_faster(truth, found, kind, print_function=_silent, lvis_style=lvis)
    if kind != "keypoints":
        evaluation.params.maxDets = [limit] if lvis else [1, 10, limit]
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
