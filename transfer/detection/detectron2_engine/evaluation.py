"""detectron2's evaluators of the tasks: COCO and LVIS, VOC, Cityscapes.

Each returns detectron2's nested {kind: {metric: %}}, where kind is bbox, segm or keypoints.
"""

from __future__ import annotations

import importlib
import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.utils import comm

from transfer.detection.evaluation import coco_metrics, load_coco

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
    kinds = ["bbox"] + ["segm"] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON
    return CocoEvaluator(name, kinds, cfg.TEST.DETECTIONS_PER_IMAGE, folder, lvis=kind == "lvis")


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

    AP, AP50 and AP75 are detectron2's own: on 2007 test they average precision at 11 recalls, as all published results
    of the MoCo protocol do. `area-...` are the areas under the curves, VOC's definition since 2010.
    """

    def evaluate(self) -> Results:
        """Return metrics over the detections of all processes, nothing on other processes than the first."""
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return {}
        lines: dict[int, list[str]] = defaultdict(list)
        for part in gathered:
            for label, rows in part.items():
                lines[label] += rows
        values: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            for label, name in enumerate(self._class_names):
                (Path(folder) / f"{name}.txt").write_text("\n".join(lines.get(label, [""])), encoding="utf-8")
            for prefix, eleven in (("", self._is_2007), ("area-", False)):
                ap = np.array([self._class_ap(folder, name, eleven) for name in self._class_names])
                values |= {f"{prefix}AP": ap.mean(), f"{prefix}AP50": ap[:, 0].mean(), f"{prefix}AP75": ap[:, 5].mean()}
                values |= {f"{prefix}AP-{n}": a for n, a in zip(self._class_names, ap.mean(1), strict=True)}
        return {"bbox": {name: 100 * float(value) for name, value in values.items()}}

    def _class_ap(self, folder: str, name: str, eleven: bool) -> list[float]:
        """Return AP of one class at IoU .5, .55 ... .95."""
        files = str(Path(folder) / "{}.txt"), self._anno_file_template, self._image_set_path
        return [voc_eval(*files, name, percent / 100, eleven)[2] for percent in range(50, 100, 5)]


class CityscapesEvaluator(CityscapesInstanceEvaluator):
    """Cityscapes' own metrics.

    Version 2.3.0 of its scripts calls `numpy.in1d`, which numpy 2.4 removed, and writes numpy's integers as JSON.
    """

    def evaluate(self) -> Results:
        """Return AP and AP50 of masks in %, nothing on other processes than the first."""
        scripts = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")

        def write(content: Any, path: str) -> None:
            text = json.dumps(content, default=lambda value: getattr(value, "__dict__", None) or int(value))
            Path(path).write_text(text, encoding="utf-8")

        with mock.patch.object(np, "in1d", np.isin, create=True), mock.patch.object(scripts, "writeDict2JSON", write):
            return super().evaluate() or {}
