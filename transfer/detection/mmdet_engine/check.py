"""What works on this machine: versions, devices, a training step with mmdet, data sets."""

from __future__ import annotations

from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from tabulate import tabulate

from common.openmmlab import check_operations
from transfer.detection.mmdet_engine import OPERATIONS
from transfer.detection.mmdet_engine.config import read_task
from transfer.detection.mmdet_engine.run import PACKAGES, register
from transfer.devices import machine
from transfer.layouts import LAYOUTS
from transfer.openmmlab.config import replace_sync_batch_norm
from transfer.openmmlab.quiet import quiet


def report(root: Path) -> str:
    """Return versions and devices, the loss of one training step of RetinaNet on noise, and which data sets are found.

    Args:
        root: --data-root.
    """
    register()
    cfg = read_task("coco-retinanet-1x")
    replace_sync_batch_norm(cfg.model)
    cfg.model.backbone.init_cfg = None
    with quiet():
        model = MODELS.build(cfg.model).to(get_device())
        check_operations(model)
        truth = InstanceData(bboxes=torch.tensor([[8.0, 8, 88, 72]]), labels=torch.tensor([3]))
        shape = {"img_shape": (128, 128), "ori_shape": (128, 128), "scale_factor": (1.0, 1.0)}
        samples = [DetDataSample(metainfo=shape, gt_instances=truth) for _ in range(2)]
        batch = {"inputs": [torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)] * 2, "data_samples": samples}
        loss = model.train_step(batch, build_optim_wrapper(model, cfg.optim_wrapper))["loss"]
    rows = []
    for name, layout in LAYOUTS.items():
        missing = layout.missing(root)
        rows.append([name, f"lacks {len(missing)} of {len(layout.parts)} parts" if missing else "found", str(root)])
    operations = "mmcv's, compiled" if OPERATIONS == "mmcv" else "torchvision's (common/openmmlab)"
    return (
        f"{machine(PACKAGES)}\n\nmmdet: a training step of RetinaNet on {get_device()} works, loss {loss.item():.2f}\n"
        f"mmcv.ops: {operations}\n\n{tabulate(rows, headers=['data', '', ''])}"
    )
