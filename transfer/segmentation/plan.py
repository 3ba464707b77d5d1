"""What a segmentation task takes: its real model, built without memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine import Config
from mmseg.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

from transfer.layouts import LAYOUTS
from transfer.openmmlab.quiet import quiet


def takes(cfg: Config) -> dict[str, Any]:
    """Return parameters, operations, iterations, batch and the data that it looks for.

    Operations are those of a forward pass on a training crop, without the auxiliary head, which only trains.
    """
    height, width = cfg.model.data_preprocessor.size
    model_config = copy.deepcopy(cfg.model)
    model_config.backbone.init_cfg = None
    with quiet(), torch.device("meta"):
        model = MODELS.build(model_config).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, height, width), mode="tensor")
    data = cfg.get("layout") or ""
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "flops": counter.get_total_flops(),
        "image": [height, width], "iterations": cfg.train_cfg.max_iters, "batch": cfg.train_dataloader.batch_size,
        "data": LAYOUTS[data].patterns if data in LAYOUTS else [str(cfg.data_root)],
    }  # fmt: skip
