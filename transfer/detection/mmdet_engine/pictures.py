"""Pictures of an mmdet model's predictions beside the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.images import save_png
from transfer.detection.pictures import Objects, side_by_side
from transfer.learning_curve import save_learning_curve

Sample = tuple[str, dict[str, Any], dict[str, Any]]  # path of an image; truth and predictions


def take_sample(sample: Any) -> Sample:
    """Return an image's path, and boxes, labels, masks and scores of truth and predictions on the CPU."""
    truth, found = sample.get("gt_instances", {}), sample.pred_instances.cpu()
    return sample.img_path, _parts(truth), _parts(found)


def _parts(objects: Any) -> dict[str, Any]:
    masks = objects.get("masks")
    if masks is not None and not isinstance(masks, torch.Tensor):  # mmdet's own class of masks
        masks = masks.to_tensor(torch.bool, "cpu")
    boxes = objects.get("bboxes", torch.zeros(0, 4))
    return {
        "boxes": torch.as_tensor(getattr(boxes, "tensor", boxes)).cpu(), "masks": masks,
        "labels": objects.get("labels", torch.zeros(0, dtype=torch.long)).cpu(), "scores": objects.get("scores"),
    }  # fmt: skip


def draw_pictures(
    folder: Path, samples: Sequence[Sample], classes: Sequence[str], headline: str, score: float = 0.4
) -> list[Path]:
    """Write vis/000.png ..., ground truth on the left and predictions on the right, and curve.png; return both.

    Args:
        folder: run folder.
        samples: of the last evaluation.
        classes: their names.
        headline: metric of the curve.
        score: least score of a prediction that is drawn.
    """
    for number, (path, truth, found) in enumerate(samples):
        with Image.open(path) as file:
            image = np.asarray(file.convert("RGB"))
        picture = side_by_side(image, _objects(truth, classes, 0.0), _objects(found, classes, score))
        save_png(picture, folder / "vis" / f"{number:03d}.png")
    save_learning_curve(folder / "metrics.jsonl", folder / "curve.png", f"val/{headline}", 0.01)
    return [folder / "vis", folder / "curve.png"]


def _objects(part: dict[str, Any], classes: Sequence[str], least: float) -> Objects:
    boxes, labels, masks, scores = (part[name] for name in ("boxes", "labels", "masks", "scores"))
    if scores is None:
        return Objects(boxes, labels, [classes[i] for i in labels.tolist()], masks)
    kept = scores >= least
    names = [f"{classes[i]} {s:.0%}" for i, s in zip(labels[kept].tolist(), scores[kept].tolist(), strict=True)]
    return Objects(boxes[kept], labels[kept], names, masks[kept] if masks is not None else None)
