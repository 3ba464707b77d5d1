"""What works on this machine: versions, devices, a training step with mmseg."""

from __future__ import annotations

import torch
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from common.openmmlab import prepare_mmseg
from transfer.devices import machine
from transfer.openmmlab.config import replace_sync_batch_norm
from transfer.openmmlab.quiet import quiet
from transfer.segmentation.config import read_task
from transfer.segmentation.run import PACKAGES


def report() -> str:
    """Return versions and devices, and the loss of one training step of fashion-fcn on noise."""
    cfg = read_task("fashion-fcn")
    replace_sync_batch_norm(cfg.model)
    with quiet():
        model = MODELS.build(cfg.model).to(get_device())
        samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 11, (1, 96, 96)))) for _ in range(2)]
        batch = {"inputs": [torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)] * 2, "data_samples": samples}
        loss = model.train_step(batch, build_optim_wrapper(model, cfg.optim_wrapper))["loss"]
    operations = "compiled" if prepare_mmseg() == "mmcv" else "torchvision's; no task here needs them"
    return (
        f"{machine(PACKAGES)}\n\nmmseg: a training step of an FCN on {get_device()} works, loss {loss.item():.2f}\n"
        f"mmcv.ops: {operations}"
    )
