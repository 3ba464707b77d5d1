"""Pictures of a run: predictions beside the ground truth, and the learning curve."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import nn

from common.images import save_png

SIDE = 480  # pixels of the longer side of a panel, at least
TITLE = 30


def save_predictions(cfg: CfgNode, model: nn.Module, folder: Path, count: int = 8, score: float = 0.4) -> None:
    """Writes vis/000.png … : ground truth on the left, predictions on the right.

    Args:
        cfg: of the run.
        model: trained.
        folder: run folder.
        count: test images, spread evenly over the set.
        score: least score of a prediction that is drawn.
    """
    name = cfg.DATASETS.TEST[0]
    rows = DatasetCatalog.get(name)
    mapper = DatasetMapper(cfg, is_train=False)
    target = folder / "vis"
    target.mkdir(exist_ok=True)
    training = model.training
    model.eval()
    for number, place in enumerate(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)):
        with torch.no_grad():
            (output,) = model([mapper(rows[place])])
        found = output["instances"].to("cpu")
        save_png(side_by_side(rows[place], found[found.scores >= score], name), target / f"{number:03d}.png")
    model.train(training)


def side_by_side(row: dict[str, Any], found: Any, name: str) -> np.ndarray:
    """Ground truth and predictions of one image, (H, W, 3) uint8 RGB.

    Args:
        row: of the data set, with its annotations.
        found: detectron2's Instances.
        name: of the data set.
    """
    image = read_image(row["file_name"], "RGB")
    zoom = max(1, math.ceil(SIDE / max(image.shape[:2])))
    metadata = MetadataCatalog.get(name)
    large = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    truth, predicted = (Visualizer(large, metadata, instance_mode=ColorMode.SEGMENTATION) for _ in range(2))
    panels = [
        (f"truth: {len(row['annotations'])}", truth.draw_dataset_dict(_enlarged(row, zoom))),
        (f"predicted: {len(found)}", predicted.draw_instance_predictions(_grown(found, large.shape))),
    ]
    return np.hstack([_titled(title, drawn.get_image()) for title, drawn in panels])


def _titled(title: str, panel: np.ndarray) -> np.ndarray:
    framed = cv2.copyMakeBorder(panel, TITLE, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return cv2.putText(framed, title, (6, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)


def _enlarged(row: dict[str, Any], zoom: int) -> dict[str, Any]:
    """The annotations of an image for its enlarged picture."""
    from pycocotools import mask as rle

    def grown(annotation: dict[str, Any]) -> dict[str, Any]:
        bigger = annotation | {"bbox": [value * zoom for value in annotation["bbox"]]}
        shape = annotation.get("segmentation")
        if isinstance(shape, dict):
            mask = cv2.resize(rle.decode(shape), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
            bigger["segmentation"] = rle.encode(np.asfortranarray(mask))
        elif shape:
            bigger["segmentation"] = [[value * zoom for value in polygon] for polygon in shape]
        if points := annotation.get("keypoints"):
            bigger["keypoints"] = [value if place % 3 == 2 else value * zoom for place, value in enumerate(points)]
        return bigger

    return row | {"annotations": [grown(annotation) for annotation in row["annotations"]]}


def _grown(found: Any, shape: tuple[int, ...]) -> Any:
    """Predictions for the enlarged picture."""
    from detectron2.structures import Instances

    factor = shape[0] / found.image_size[0]
    grown = Instances(shape[:2], **found.get_fields())
    grown.pred_boxes = found.pred_boxes.clone()
    grown.pred_boxes.scale(factor, factor)
    if found.has("pred_masks"):
        masks = [
            cv2.resize(m, shape[1::-1], interpolation=cv2.INTER_NEAREST)
            for m in found.pred_masks.numpy().astype(np.uint8)
        ]
        grown.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(len(found), *shape[:2]))
    if found.has("pred_keypoints"):
        grown.pred_keypoints = found.pred_keypoints * torch.tensor([factor, factor, 1.0])
    return grown


def save_curve(folder: Path) -> None:
    """Draws curve.png from metrics.jsonl: the losses, and the learning rate beside them."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "total_loss" in row]
    if not rows:
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    steps = [row["step"] for row in rows]
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    names = sorted(name for name in rows[0] if "loss" in name and name != "total_loss")
    axis.plot(steps, [row["total_loss"] for row in rows], color="black", linewidth=2, label="total")
    for name in names:
        axis.plot(steps, [row.get(name) for row in rows], linewidth=1, label=name.removeprefix("loss_"))
    axis.set(xlabel="iteration", ylabel="loss", ylim=(0, None), title=folder.parent.name)
    axis.legend(fontsize=8, ncols=2)
    rate = axis.twinx()
    rate.plot(steps, [row["lr"] for row in rows], color="grey", linestyle=":", linewidth=1)
    rate.set(ylabel="learning rate (dotted)", ylim=(0, None))
    figure.savefig(folder / "curve.png", dpi=110)
    plt.close(figure)
