"""Resolve a task: the mmengine config of one run from the config file, the backbone, the processes and the options."""

from __future__ import annotations

from mmengine.config import Config

from transfer.openmmlab.config import read_config, recorded
from transfer.openmmlab.resolve import Framework
from transfer.openmmlab.weights import ModelBackbone
from transfer.segmentation import overrides
from transfer.segmentation.title import compose_title
from transfer.tasks import SEGMENTATION


def read_task(task: str) -> Config:
    """Read a task by name, or a user's config by path.

    Raises:
        ValueError: no such task, or a file that is no complete config.
    """
    cfg = read_config(SEGMENTATION.find(task), task)
    if not cfg.get("scenes") and not cfg.get("data_root"):
        raise ValueError(f"--task {task}: data_root is missing, the folder of its images below --data-root")
    # mmseg's own configs hold these too; here they are always this project's.
    evaluator = cfg.val_evaluator[0] if isinstance(cfg.val_evaluator, list | tuple) else cfg.val_evaluator
    cfg.val_evaluator = cfg.test_evaluator = {**evaluator, "type": "ClassIoU"}
    cfg.setdefault("absent_classes", None)  # so that --cfg-options can name classes that no mask shows
    return cfg


def fit_heads(cfg: Config, weights: ModelBackbone) -> None:
    """Set the backbone's network in a task's config, and the input widths of its heads."""
    weights.fit(cfg)
    cfg.model.pretrained = None  # mmseg's own configs name weights
    for head in ("decode_head", "auxiliary_head"):
        if head in cfg.model:
            index = cfg.model[head].in_index
            widths = weights.widths
            cfg.model[head].in_channels = widths[index] if isinstance(index, int) else [widths[i] for i in index]


resolve = Framework(read_task, fit_heads, overrides.check, recorded, compose_title, overrides.OPTIONAL).resolve
