"""The suite's metrics of mmdet's detections: the same figures as detectron2's for the same detections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from pycocotools import mask as rle
from torch import Tensor

from transfer.detection.evaluation import coco_metrics, fractions, load_coco
from transfer.detection.voc import Detection, read_voc, voc_metrics


class SuiteMetric(BaseMetric):
    """Collects the detections of each image and scores them on the first process.

    Args:
        data_root: folder of the test set.
        ann_file: its annotations, below that folder.
    """

    default_prefix = ""  # of the names; None has mmengine print a warning

    def __init__(self, data_root: str, ann_file: str, limit: int = 100) -> None:
        super().__init__()
        self.root, self.file, self.limit = Path(data_root), Path(data_root, ann_file), limit

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Add the predictions of some images: id, boxes, scores, classes and masks."""
        for sample in data_samples:
            found = sample["pred_instances"]
            self.results.append({
                "image": sample["img_id"], "boxes": found["bboxes"].cpu().float().numpy(),
                "scores": found["scores"].cpu().float().numpy(), "labels": found["labels"].cpu().numpy(),
                "masks": encode(found["masks"]) if "masks" in found else None,
                "mask_scores": found.get("mask_scores", found["scores"]).cpu().float().numpy(),
            })  # fmt: skip


def encode(masks: Tensor) -> list[dict[str, Any]]:
    """Return masks, (N, H, W) bool, as COCO's run lengths."""
    pixels = np.asfortranarray(masks.detach().cpu().numpy().astype(np.uint8).transpose(1, 2, 0))
    return [{**row, "counts": row["counts"].decode()} for row in rle.encode(pixels)]


@METRICS.register_module()
class CocoAP(SuiteMetric):
    """AP of boxes and masks as COCO's evaluation has it, through faster-coco-eval.

    Args:
        metric: bbox, segm or both.
        **settings: of SuiteMetric.
    """

    def __init__(self, metric: Sequence[str], **settings: Any) -> None:
        super().__init__(**settings)
        self.kinds = metric

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Return kind/metric -> fraction; metrics that are not defined are left out."""
        truth = load_coco(str(self.file))
        ids = [category["id"] for category in truth.dataset["categories"]]  # classes are in the file's order
        rows = {kind: [row for image in results for row in coco_rows(image, ids, kind)] for kind in self.kinds}
        return fractions({kind: coco_metrics(truth, found, kind, self.limit) for kind, found in rows.items()})


def coco_rows(image: dict[str, Any], ids: Sequence[int], kind: str) -> list[dict[str, Any]]:
    """Return the detections of an image in COCO's results format; `ids` are the categories of the class indices."""
    boxes = image["boxes"].copy()
    boxes[:, 2:] -= boxes[:, :2]
    rows = [{"image_id": image["image"], "category_id": ids[label]} for label in image["labels"]]
    if kind == "bbox":
        more = [
            {"bbox": box, "score": score} for box, score in zip(boxes.tolist(), image["scores"].tolist(), strict=True)
        ]
    else:
        scores = image["mask_scores"].tolist()
        more = [{"segmentation": mask, "score": score} for mask, score in zip(image["masks"], scores, strict=True)]
    return [row | part for row, part in zip(rows, more, strict=True)]


@METRICS.register_module()
class VocAP(SuiteMetric):
    """AP as Pascal VOC defines it: at 11 recalls for 2007."""

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Return kind/metric -> fraction."""
        folder, classes = self.file.parents[2], self.dataset_meta["classes"]
        found: dict[int, list[Detection]] = defaultdict(list)
        for image in results:
            # mmdet's boxes count from 0. VOC's files of results are rounded so, as detectron2 does.
            rows = zip(image["labels"].tolist(), image["scores"].tolist(), image["boxes"].tolist(), strict=True)
            for label, score, box in rows:
                found[label].append((image["image"], round(score, 3), [round(side + 1, 1) for side in box]))
        truth = read_voc(folder, self.file.stem, classes)
        return fractions({"bbox": voc_metrics(truth, found, classes, folder.name == "VOC2007")})
