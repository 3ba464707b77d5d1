"""What the check of the data reads from each mask: its labels, and the score of a perfect prediction.

These functions run in worker processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from transfer.segmentation.evaluation import ClassIoU

LOSSY = ("JPEG", "MPO")
CHANNELS = ("1", "L", "P", "I;16", "I;16B", "I")  # PIL's modes of one channel of integers


def inspect_mask(path: Path) -> dict[str, Any]:
    """Return size (width, height), pixels (label -> how many) and, with a palette, colours (label -> hexadecimal).

    Labels are those of the file: nothing is mapped yet.

    Raises:
        ValueError: it cannot be read, or holds no class indices.
    """
    try:
        return _inspect_mask(path)
    except (OSError, SyntaxError) as error:  # all that PIL raises for a broken file
        raise ValueError(f"{path}: this mask cannot be read: {error}") from error


def _inspect_mask(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        head = file.read(26)
    with Image.open(path) as image:
        if image.mode not in CHANNELS:
            raise ValueError(f"{path}: {image.mode} is no mask of class indices; it needs one channel or a palette")
        if image.format in LOSSY:
            raise ValueError(f"{path}: {image.format} changes the class indices when it is saved; save masks as PNG")
        if image.format == "PNG" and head[24] in (2, 4) and head[25] == 0:
            raise ValueError(
                f"{path}: grey with {head[24]} bits, whose values are stretched to 0-255 when it is read: save class "
                "indices with 8 bits, or with a palette"
            )
        if image.mode in ("L", "P"):
            counts = image.histogram()
            pixels = {label: count for label, count in enumerate(counts) if count}
        else:
            labels, many = np.unique(np.asarray(image), return_counts=True)
            pixels = dict(zip(labels.astype(int).tolist(), many.tolist(), strict=True))
        palette = image.getpalette("RGB") if image.mode == "P" else None
        colours = {i: bytes(palette[3 * i : 3 * i + 3]).hex() for i in pixels} if palette else {}
        return {"size": image.size, "pixels": pixels, "colours": colours}


def read_labels(path: Path, reader: LoadAnnotations, entry: Mapping[str, Any]) -> np.ndarray:
    """Return the labels (H, W) that the evaluator reads from a mask.

    Args:
        path: of the mask.
        reader: the transform of the pipeline.
        entry: `label_map` and `reduce_zero_label` of the data set.
    """
    read = reader.transform({**entry, "seg_map_path": str(path), "seg_fields": []})
    labels: np.ndarray = read["gt_seg_map"]
    return labels


def label_table(reader: LoadAnnotations, entry: Mapping[str, Any]) -> np.ndarray:
    """Return what the evaluator reads for each of the values 0 to 255 of a mask, (256,)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.png"
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
        return read_labels(path, reader, entry).reshape(256)


def score_mask(path: Path, reader: LoadAnnotations, entry: Mapping[str, Any], classes: int, ignore: int) -> list:
    """Return the areas of intersection, union, prediction and truth, each (classes,), of a perfect prediction.

    The prediction is the truth, as the evaluator reads it, with class 0 where nothing is scored.
    """
    truth = torch.from_numpy(read_labels(path, reader, entry))
    metric = ClassIoU(ignore_index=ignore)
    metric.dataset_meta = {"classes": range(classes)}
    found = torch.where(truth == ignore, 0, truth)
    metric.process({}, [{"pred_sem_seg": {"data": found}, "gt_sem_seg": {"data": truth}}])
    return [area.long().tolist() for area in metric.results[0]]


def perfect_score(areas: list[list[list[int]]], classes: list[str], ignore: int) -> dict[str, float]:
    """Return the metrics of the perfect predictions of all masks, as `ClassIoU` computes them."""
    metric = ClassIoU(ignore_index=ignore)
    metric.dataset_meta = {"classes": classes}
    return metric.compute_metrics([tuple(map(torch.tensor, image)) for image in areas])
