"""Figures of a detector: COCO and LVIS through faster-coco-eval, VOC through detectron2's `voc_eval`.

Every evaluator returns detectron2's nested {kind: {metric: %}}, where kind is bbox, segm or keypoints.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
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
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as rle

Results = dict[str, dict[str, float]]
# faster-coco-eval's names and the field's
METRICS = {
    "AP_all": "AP", "AP_50": "AP50", "AP_75": "AP75", "AP_small": "APs", "AP_medium": "APm", "AP_large": "APl",
    "APr": "APr", "APc": "APc", "APf": "APf",
}  # fmt: skip


def build_evaluator(cfg: CfgNode, name: str, folder: Path) -> DatasetEvaluator:
    """The evaluator that belongs to a data set.

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
    """Gathers detections in COCO's layout, writes predictions.json, computes the figures."""

    def __init__(self, name: str, kinds: Sequence[str], limit: int, folder: Path, lvis: bool = False) -> None:
        self.metadata = MetadataCatalog.get(name)
        self.kinds, self.limit, self.folder, self.lvis = kinds, limit, folder, lvis
        self.reset()

    def reset(self) -> None:
        """Forgets all detections."""
        self.detections: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes in the model's outputs for some images."""
        for image, output in zip(inputs, outputs, strict=True):
            self.detections += instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])

    def evaluate(self) -> Results:
        """Figures over the detections of all processes; nothing on others than the first."""
        gathered = comm.gather(self.detections)
        if not comm.is_main_process():
            return {}
        # LVIS's own category ids are places + 1, and detectron2's metadata has no map for them
        ids = self.metadata.get("thing_dataset_id_to_contiguous_id")
        back = {v: k for k, v in ids.items()} if ids else {}
        rows = [
            row | {"category_id": back.get(row["category_id"], row["category_id"] + 1)}
            for row in itertools.chain(*gathered)
        ]
        (self.folder / "predictions.json").write_text(json.dumps(rows))
        truth = COCO(self.metadata.json_file, print_function=_silent)
        return {kind: coco_metrics(truth, rows, kind, self.limit, self.lvis) for kind in self.kinds}


def coco_metrics(
    truth: COCO, detections: list[dict[str, Any]], kind: str, limit: int = 100, lvis: bool = False
) -> dict[str, float]:
    """AP and its parts in %; NaN where there is nothing to find; AP-NAME for each class.

    Args:
        truth: annotations.
        detections: rows in COCO's results layout.
        kind: bbox, segm or keypoints.
        limit: most detections of an image that count; keypoints count 20, as COCO has it.
        lvis: whether images list their classes as LVIS's do, and rare, common and frequent classes are told apart.
    """
    if not detections:  # COCO's tools refuse an empty list
        detections = [_nowhere(truth, kind)]
    if kind == "segm":  # else the box's area would decide whether a mask is small
        detections = [{key: value for key, value in row.items() if key != "bbox"} for row in detections]
    found = truth.loadRes(detections)
    evaluation = COCOeval_faster(truth, found, kind, print_function=_silent, lvis_style=lvis)
    if kind != "keypoints":
        evaluation.params.maxDets = [limit] if lvis else [1, 10, limit]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = {METRICS[name]: value for name, value in evaluation.stats_as_dict.items() if name in METRICS}
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, limit); -1: nothing to find
    names = [category["name"] for category in truth.loadCats(evaluation.params.catIds)]
    if len(names) > 1:
        for place, name in enumerate(names):
            curve = precision[:, :, place, 0, -1]
            values[f"AP-{name}"] = float(np.mean(curve[curve > -1])) if (curve > -1).any() else -1.0
    return {name: 100 * value if value > -1 else math.nan for name, value in values.items()}


def _nowhere(truth: COCO, kind: str) -> dict[str, Any]:
    """A detection of nothing with a score of 0."""
    image = truth.dataset["images"][0]
    row = {"image_id": image["id"], "category_id": truth.dataset["categories"][0]["id"], "score": 0.0}
    if kind == "segm":
        empty = rle.encode(np.zeros((image["height"], image["width"]), np.uint8, order="F"))
        return row | {"segmentation": {"size": empty["size"], "counts": empty["counts"].decode()}}
    return row | {"bbox": [0.0, 0.0, 0.5, 0.5]} | ({"keypoints": [0.0] * 51} if kind == "keypoints" else {})


def _silent(*arguments: Any, **options: Any) -> None:
    pass


class VocEvaluator(PascalVOCDetectionEvaluator):
    """VOC's AP over IoU .5 … .95, of classes too, by both definitions of AP.

    AP, AP50 and AP75 are detectron2's own: on 2007 test they take precision at 11 recalls, and so do all published
    figures of the MoCo protocol. `area-…` are the areas under the curves, VOC's definition since 2010.
    """

    def evaluate(self) -> Results:
        """Figures over the detections of all processes; nothing on others than the first."""
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
                (Path(folder) / f"{name}.txt").write_text("\n".join(lines.get(label, [""])))
            for prefix, eleven in (("", self._is_2007), ("area-", False)):
                ap = np.array([self._class_ap(folder, name, eleven) for name in self._class_names])
                values |= {f"{prefix}AP": ap.mean(), f"{prefix}AP50": ap[:, 0].mean(), f"{prefix}AP75": ap[:, 5].mean()}
                values |= {f"{prefix}AP-{n}": a for n, a in zip(self._class_names, ap.mean(1), strict=True)}
        return {"bbox": {name: 100 * float(value) for name, value in values.items()}}

    def _class_ap(self, folder: str, name: str, eleven: bool) -> list[float]:
        """AP of one class at IoU .5, .55 … .95."""
        files = str(Path(folder) / "{}.txt"), self._anno_file_template, self._image_set_path
        return [voc_eval(*files, name, percent / 100, eleven)[2] for percent in range(50, 100, 5)]


class CityscapesEvaluator(CityscapesInstanceEvaluator):
    """Cityscapes' own figures.

    Its scripts 2.3.0 call `numpy.in1d`, which numpy 2.4 has no longer, and write numpy's integers as JSON.
    """

    def evaluate(self) -> Results:
        """AP and AP50 of masks in %; nothing on others than the first process."""
        scripts = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")

        def write(content: Any, path: str) -> None:
            Path(path).write_text(
                json.dumps(content, default=lambda value: getattr(value, "__dict__", None) or int(value))
            )

        with mock.patch.object(np, "in1d", np.isin, create=True), mock.patch.object(scripts, "writeDict2JSON", write):
            return super().evaluate() or {}


def shares(results: Results) -> dict[str, float]:
    """Flat kind/metric → share between 0 and 1, without what cannot be computed (e.g. APl where nothing is large)."""
    rows = {f"{kind}/{name}": value / 100 for kind, values in results.items() for name, value in values.items()}
    return {name: value for name, value in rows.items() if math.isfinite(value)}
