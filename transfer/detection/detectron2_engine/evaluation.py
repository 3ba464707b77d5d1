"""detectron2's evaluators of the tasks: COCO and LVIS, VOC, Cityscapes.

Each returns detectron2's nested {kind: {metric: %}}, where kind is bbox, segm or keypoints.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from transfer.detection.cityscapes_check import today
from transfer.detection.evaluation import coco_metrics, load_coco
from transfer.detection.voc import Detection, read_voc, voc_metrics

Results = dict[str, dict[str, float]]


def build_evaluator(cfg: CfgNode, name: str, folder: Path) -> DatasetEvaluator:
    """Return the evaluator of a data set.

    Args:
        cfg: of the run.
        name: registered data set.
        folder: where predictions are written.
    """
    kind = MetadataCatalog.get(name).evaluator_type
    if kind == "pascal_voc":
        return VocEvaluator(name)
    if kind == "cityscapes_instance":
        return CityscapesEvaluator(name)
    return CocoEvaluator(name, metric_kinds(cfg), cfg.TEST.DETECTIONS_PER_IMAGE, folder, lvis=kind == "lvis")


def metric_kinds(cfg: CfgNode) -> tuple[str, ...]:
    """Return what of the model's output is scored."""
    return ("bbox", *["segm"] * cfg.MODEL.MASK_ON, *["keypoints"] * cfg.MODEL.KEYPOINT_ON)


class CocoEvaluator(DatasetEvaluator):
    """Collects detections in COCO's format, writes predictions.json and computes the metrics."""

    def __init__(self, name: str, kinds: Sequence[str], limit: int, folder: Path, lvis: bool = False) -> None:
        self.metadata = MetadataCatalog.get(name)
        self.kinds, self.limit, self.folder, self.lvis = kinds, limit, folder, lvis
        self.reset()

    def reset(self) -> None:
        """Discard all detections."""
        self.detections: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Add the model's outputs for some images."""
        for image, output in zip(inputs, outputs, strict=True):
            self.detections += instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])

    def evaluate(self) -> Results:
        """Return metrics over the detections of all processes, nothing on other processes than the first."""
        gathered = comm.gather(self.detections)
        if not comm.is_main_process():
            return {}
        # LVIS's category ids are class indices + 1, and detectron2's metadata has no map for them
        ids = self.metadata.get("thing_dataset_id_to_contiguous_id")
        back = {v: k for k, v in ids.items()} if ids else {}
        rows = [
            row | {"category_id": back.get(row["category_id"], row["category_id"] + 1)}
            for row in itertools.chain(*gathered)
        ]
        (self.folder / "predictions.json").write_text(json.dumps(rows), encoding="utf-8")
        truth = load_coco(self.metadata.json_file)
        return {kind: coco_metrics(truth, rows, kind, self.limit, self.lvis) for kind in self.kinds}


class VocEvaluator(PascalVOCDetectionEvaluator):
    """VOC's AP over IoU .5 to .95, in all and per class, by both definitions of AP.

    AP, AP50 and AP75 are detectron2's own where every class has objects: on 2007 test they average precision at 11
    recalls, as all published results of the MoCo protocol do. `area-...` are the areas under the curves, VOC's
    definition since 2010. Classes without objects have no AP and do not count, where detectron2 counts them as 0.
    """

    def evaluate(self) -> Results:
        """Return metrics over the detections of all processes, nothing on other processes than the first."""
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return {}
        found: dict[int, list[Detection]] = defaultdict(list)
        for label, lines in itertools.chain.from_iterable(part.items() for part in gathered):
            for line in lines:  # rounded as VOC's files of results are
                image, score, *box = line.split(" ")
                found[label].append((image, float(score), [float(side) for side in box]))
        meta = MetadataCatalog.get(self._dataset_name)
        truth = read_voc(Path(meta.dirname), meta.split, self._class_names)
        return {"bbox": voc_metrics(truth, found, self._class_names, self._is_2007)}


class CityscapesEvaluator(CityscapesInstanceEvaluator):
    """Cityscapes' own metrics; classes without objects do not count."""

    def evaluate(self) -> Results:
        """Return AP and AP50 of masks in %, nothing on other processes than the first."""
        with today():
            return super().evaluate() or {}
