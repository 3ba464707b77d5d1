"""What works on this machine: versions, devices, operators of detectron2, data sets."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from detectron2.layers import ROIAlign, batched_nms
from tabulate import tabulate

from common.extras import require
from transfer.detection.data import CITYSCAPES
from transfer.devices import machine
from transfer.layouts import LAYOUTS


def report(root: Path) -> str:
    """Return two tables for the screen: versions and devices, and what works and what it is for.

    Args:
        root: --data-root.
    """
    names = importlib.metadata.packages_distributions().get("detectron2", ["detectron2"])
    rows = [[name, _try(work), use] for name, work, use in _PARTS]
    for name, layout in LAYOUTS.items():
        missing = layout.missing(root)
        found = f"lacks {len(missing)} of {len(layout.parts)} parts" if missing else "found"
        rows.append([f"data: {name}", found, str(root)])
    parts = tabulate(rows, headers=["", "works", ""])
    return f"{machine([*dict.fromkeys(names), 'faster-coco-eval', 'pycocotools'])}\n\n{parts}"


def _try(work: Callable[[], object]) -> str:
    """Return "works", or the start of the error message."""
    try:
        work()
    except Exception as error:  # noqa: BLE001  whatever is wrong with it is the answer
        return f"no: {' '.join(str(error).split())[:60]}"
    return "works"


_FEATURES, _BOXES = torch.rand(1, 4, 32, 32), torch.tensor([[0.0, 4.0, 4.0, 60.0, 60.0]])
_HEAD = "transfer.detection.detectron2_engine.head"
_PARTS = (
    ("RoIAlign", partial(ROIAlign((7, 7), 0.25, 0), _FEATURES, _BOXES), "all R-CNN tasks; torchvision's"),
    ("NMS", partial(batched_nms, _BOXES[:, 1:], torch.ones(1), torch.zeros(1), 0.5), "all tasks; torchvision's"),
    ("Res5ROIHeadsExtraNorm", partial(importlib.import_module, _HEAD), "C4 tasks; this project's"),
    ("detectron2._C", partial(importlib.import_module, "detectron2._C"), "deformable, rotated operators: no task here"),
    ("cityscapesscripts", partial(require, "cityscapesscripts", CITYSCAPES), "cityscapes-instance"),
)
