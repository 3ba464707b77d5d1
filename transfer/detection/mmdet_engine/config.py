"""Resolve a task of mmdet: its mmengine config for a backbone, the processes and the options."""

from __future__ import annotations

import math
from typing import Any

from mmengine.config import Config

from converters.targets import mmdet_has_c4
from transfer.changes import flat
from transfer.detection.mmdet_engine import OPERATIONS
from transfer.detection.mmdet_engine.title import compose_title
from transfer.openmmlab import overrides
from transfer.openmmlab.config import LOADERS, datasets, read_config, recorded, reference_processes
from transfer.openmmlab.resolve import Framework
from transfer.openmmlab.weights import ModelBackbone
from transfer.tasks import MMDET

# Type of the test set -> evaluator; other types are refused, because nothing here checks and scores them.
EVALUATORS = {"CocoDataset": "CocoAP", "VOCDataset": "VocAP", "CityscapesInstances": "CityscapesAP"}
KINDS = ("bbox", "segm")


def read_task(task: str) -> Config:
    """Read a task by name, or a user's config of mmdet by path; its schedule then counts iterations.

    Raises:
        ValueError: no such task, or a file that is no complete config.
    """
    cfg = read_config(MMDET.find(task), task)
    to_iterations(cfg)
    # mmdet takes AP50 and the like at 1,000 detections, and names the classes of boxes and masks alike.
    cfg.val_evaluator = cfg.test_evaluator = _evaluator(cfg)
    return cfg


def _evaluator(cfg: Config) -> dict[str, Any]:
    for name in LOADERS[:2]:
        for dataset in datasets(cfg[name]):
            if dataset.get("type") not in EVALUATORS:
                known = ", ".join(EVALUATORS)
                raise ValueError(f"{cfg.filename}: {name}.dataset.type={dataset.get('type')!r}: use one of {known}")
    tested = [*datasets(cfg.val_dataloader)]
    if len(tested) > 1:
        raise ValueError(f"{cfg.filename}: val_dataloader.dataset: test on one data set, not {len(tested)}")
    given = cfg.val_evaluator if isinstance(cfg.val_evaluator, list | tuple) else [cfg.val_evaluator]
    evaluator: dict[str, Any] = {"type": EVALUATORS[tested[0].type]}
    if evaluator["type"] == "CityscapesAP":
        evaluator["truth"] = tested[0].data_prefix.seg
    if evaluator["type"] == "CocoAP":
        named = given[0].get("metric", "bbox")
        kinds = [named] if isinstance(named, str) else list(named)
        if set(kinds) - set(KINDS):
            raise ValueError(f"{cfg.filename}: val_evaluator.metric={named!r}: use bbox and segm")
        evaluator["metric"] = kinds
    return evaluator


def to_iterations(cfg: Config) -> None:
    """Turn a schedule that counts epochs into one that counts iterations.

    Raises:
        ValueError: the config does not state the number of training images.
    """
    if "max_iters" in cfg.train_cfg:
        return
    images = (cfg.get("images") or {}).get("train")
    if not images:
        raise ValueError(
            f"{cfg.filename}: its schedule counts epochs; add images = dict(train=N, val=M), the numbers that mmdet "
            "reads, from which the iterations follow (COCO: 117266 and 5000)"
        )
    dataset, repeated = cfg.train_dataloader.dataset, 1
    while "times" in dataset:
        repeated, dataset = repeated * dataset.times, dataset.dataset
    batch = cfg.train_dataloader.batch_size * reference_processes(cfg)
    length = math.ceil(images * repeated / batch)
    cfg.train_cfg = {
        "type": "IterBasedTrainLoop", "max_iters": cfg.train_cfg.max_epochs * length,
        "val_interval": cfg.train_cfg.get("val_interval", 1) * length,
    }  # fmt: skip
    for scheduler in cfg.param_scheduler:
        if scheduler.get("by_epoch", True):
            scheduler.by_epoch = False
            for key in ("begin", "end", "T_max"):
                if key in scheduler:
                    scheduler[key] *= length
            if "milestones" in scheduler:
                scheduler.milestones = [step * length for step in scheduler.milestones]
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=cfg.default_hooks.checkpoint.interval * length)
    cfg.log_processor = {"type": "LogProcessor", "window_size": 50, "by_epoch": False}
    cfg.train_dataloader.sampler = {"type": "InfiniteSampler", "shuffle": True}


def fit_detector(cfg: Config, weights: ModelBackbone) -> None:
    """Set the backbone's network in a task's config, and the input widths of its neck or C4 heads.

    Raises:
        ValueError: a C4 detector of mmdet cannot hold the network.
    """
    weights.fit(cfg)
    model, widths = cfg.model, weights.widths
    model.backbone.init_cfg = None  # mmdet's own configs name weights
    head = model.get("roi_head", {})
    if head.get("shared_head"):
        arch = weights.backbone.arch
        if not mmdet_has_c4(arch):
            raise ValueError(f"{arch}: mmdet's C4 detectors have no RoI head for its last stage; use an FPN task")
        network = {name: model.backbone[name] for name in ("depth", "style", "norm_eval", "init_cfg")}
        head.shared_head.update(network)
        model.rpn_head.in_channels = head.bbox_roi_extractor.out_channels = widths[2]
        for name in ("bbox_head", "mask_head"):
            if name in head:
                head[name].in_channels = widths[3]
    elif model.get("neck"):
        neck = model.neck[0] if isinstance(model.neck, list | tuple) else model.neck
        neck.in_channels = [widths[i] for i in model.backbone.out_indices]


def check(cfg: Config) -> None:
    """Check what mmengine and mmdet accept but fail on when they train or evaluate.

    Raises:
        ValueError: names the setting.
    """
    overrides.check(cfg)
    if cfg.optim_wrapper.type == "CpuAmpOptimWrapper" and cfg.model.get("roi_head"):
        raise ValueError(
            "--amp: on the CPU it is bfloat16, which cannot hold the boxes of an RoI head: its steps are 4 pixels "
            "from x = 512 on; leave --amp out"
        )


def record(cfg: Config, batch: int) -> dict[str, Any]:
    """Return what the metrics depend on, the engine and whose operations ran included."""
    config = recorded(cfg, batch, ("sampler", "batch_sampler", "dataset"))
    return {"engine": "mmdet", "operations": OPERATIONS, **config}


def class_settings(cfg: Config) -> dict[str, int]:
    """Return the settings of a model that are its number of classes."""
    return {f"model.{key}": n for key, n in flat(cfg.model.to_dict()).items() if key.split(".")[-1] == "num_classes"}


def detection_limit(cfg: Config) -> int:
    """Return the most detections per image."""
    test = cfg.model.get("test_cfg") or {}
    return int((test.get("rcnn") or test).get("max_per_img", 100))


resolve = Framework(read_task, fit_detector, check, record, compose_title).resolve
