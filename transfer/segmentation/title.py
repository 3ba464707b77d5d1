"""The title of a record: the resolved config in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmengine.config import Config

AUTOCAST = {"AmpOptimWrapper": "float16 autocast", "CpuAmpOptimWrapper": "bfloat16 autocast"}


def compose_title(cfg: Config, batch: int, own_statistics: bool, changes: Sequence[str]) -> str:
    """Return network, norm, data, schedule and test mode of a resolved config with `batch` images per optimiser step.

    Batch norm with `own_statistics` in each process and `changes` by --cfg-options are unusual and come last.
    """
    model, network = cfg.model, cfg.model.backbone
    wrapper, optimizer = cfg.optim_wrapper, cfg.optim_wrapper.optimizer
    crop = "x".join(map(str, model.data_preprocessor.size))
    schedule = "/".join(scheduler.type for scheduler in cfg.param_scheduler)
    accumulate = wrapper.get("accumulative_counts", 1)
    unusual = [AUTOCAST[wrapper.type]] if wrapper.type in AUTOCAST else []
    unusual += [f"gradients of {accumulate} batches accumulated"] if accumulate > 1 else []
    unusual += ["batch norm of each process"] if own_statistics else []
    stride = 4 * math.prod(network.strides)
    line = (
        f"{model.decode_head.type} on {network.type}-{network.depth}, stride {stride}, {network.norm_cfg.type}, "
        f"{cfg.data_root}, {cfg.train_cfg.max_iters // accumulate} iterations of {batch}, crop {crop}, "
        f"{optimizer.type} lr {optimizer.lr:g} wd {optimizer.get('weight_decay', 0):g} {schedule}, "
        f"{model.test_cfg.mode} image, single scale"
    )
    return ", ".join([line, *unusual]) + (f"; changed: {' '.join(changes)}" if changes else "")
