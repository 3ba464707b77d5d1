"""What a detection task takes: its real model, built without memory."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.utils.flop_counter import FlopCounterMode

from transfer.layouts import LAYOUTS

ASPECT = 4 / 3  # of a typical photo


def takes(cfg: CfgNode) -> dict[str, Any]:
    """Return parameters, operations of the backbone with its pyramid, iterations, batch and the data that it looks for.

    Operations are those of a forward pass on a photo of the largest training size; proposals, and so the operations of
    the heads, depend on the image.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
    with torch.device("meta"):
        model = build_model(cfg).eval()
        short = max(cfg.INPUT.MIN_SIZE_TRAIN)
        long = min(round(short * ASPECT), cfg.INPUT.MAX_SIZE_TRAIN)
        sides = [-(-side // 32) * 32 for side in (short, long)]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.backbone(torch.empty(1, 3, *sides))
    data, found = cfg.TASK.DATA, [*cfg.TASK.FILES] or ["scenes, made from Fashion-MNIST"]
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "backbone_flops": counter.get_total_flops(),
        "image": sides, "iterations": cfg.SOLVER.MAX_ITER, "batch": cfg.SOLVER.IMS_PER_BATCH,
        "data": LAYOUTS[data].patterns if data in LAYOUTS else found,
    }  # fmt: skip
