"""What a detection task of mmdet takes: its real model, built without memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from transfer.changes import flat
from transfer.layouts import LAYOUTS
from transfer.openmmlab.quiet import quiet

ASPECT = 4 / 3  # of a typical photo


def takes(cfg: Config) -> dict[str, Any]:
    """Return parameters, operations of the backbone with its neck, iterations, batch and the data that it looks for.

    Operations are those of a forward pass on a photo of the largest training size; proposals, and so the operations of
    the heads, depend on the image.
    """
    short, long = training_size(cfg)
    sides = [-(-side // 32) * 32 for side in (short, min(round(short * ASPECT), long))]
    with quiet(), torch.device("meta"):
        model = MODELS.build(copy.deepcopy(cfg.model)).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.extract_feat(torch.empty(1, 3, *sides))
    data, own = cfg.get("layout") or "", cfg.get("own")
    looked_for = [*own.files] if own else ["scenes, made from Fashion-MNIST"]
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "backbone_flops": counter.get_total_flops(),
        "image": sides, "iterations": cfg.train_cfg.max_iters, "batch": cfg.train_dataloader.batch_size,
        "data": LAYOUTS[data].patterns if data in LAYOUTS else looked_for,
    }  # fmt: skip


def training_size(cfg: Config) -> tuple[int, int]:
    """Return the largest short side and the limit of the long side that the pipeline of a task resizes to."""
    loader = flat(cfg.train_dataloader.dataset.to_dict())
    scales = [value for key, value in loader.items() if key.split(".")[-1] in ("scale", "scales")]
    pairs = [pair for value in scales for pair in (value if isinstance(value[0], list) else [value])]
    best = max(pairs, key=min, default=[800, 1333])
    return min(best), max(best)
