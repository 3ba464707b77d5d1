"""Pictures of a detectron2 model's predictions beside the ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances, read_image
from detectron2.structures import Instances
from torch import nn

from common.images import save_png
from transfer.detection.pictures import Objects, side_by_side


def save_predictions(cfg: CfgNode, model: nn.Module, folder: Path, count: int = 8, score: float = 0.4) -> None:
    """Write vis/000.png ...: ground truth on the left, predictions on the right.

    Args:
        cfg: of the run.
        model: trained.
        folder: run folder.
        count: number of test images, spread evenly over the set.
        score: least score of a prediction that is drawn.
    """
    name = cfg.DATASETS.TEST[0]
    rows, classes = DatasetCatalog.get(name), MetadataCatalog.get(name).thing_classes
    mapper = DatasetMapper(cfg, is_train=False)
    model.eval()
    for number, index in enumerate(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)):
        row = rows[index]
        with torch.no_grad():
            (output,) = model([mapper(row)])
        found = output["instances"].to("cpu")
        image = read_image(row["file_name"], "RGB")
        truth = _annotated(row["annotations"], image.shape[:2], classes)
        predicted = _predicted(found[found.scores >= score], classes)
        save_png(side_by_side(image, truth, predicted), folder / "vis" / f"{number:03d}.png")


def _annotated(annotations: list[dict[str, Any]], size: tuple[int, ...], classes: list[str]) -> Objects:
    points = [{"keypoints": np.reshape(row["keypoints"], (-1, 3))} if "keypoints" in row else {} for row in annotations]
    rows = [row | more for row, more in zip(annotations, points, strict=True)]
    truth = annotations_to_instances(rows, size, "bitmask")
    masks = truth.gt_masks.tensor if truth.has("gt_masks") else None
    keypoints = truth.gt_keypoints.tensor if truth.has("gt_keypoints") else None
    names = [classes[i] for i in truth.gt_classes.tolist()]
    return Objects(truth.gt_boxes.tensor, truth.gt_classes, names, masks, keypoints)


def _predicted(found: Instances, classes: list[str]) -> Objects:
    labels = zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)
    names = [f"{classes[i]} {score:.0%}" for i, score in labels]
    masks = found.pred_masks if found.has("pred_masks") else None
    keypoints = found.pred_keypoints if found.has("pred_keypoints") else None
    return Objects(found.pred_boxes.tensor, found.pred_classes, names, masks, keypoints)
