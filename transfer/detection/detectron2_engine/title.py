"""The title of a record: the resolved configuration in words, and how it differs from the published task."""

from __future__ import annotations

from detectron2.config import CfgNode

from transfer.changes import changed, flat
from transfer.detection.detectron2_engine.config import NOT_RECORDED, as_published


def compose_title(task: str, cfg: CfgNode) -> str:
    """Return detector, data, schedule and precision of a resolved configuration, and what differs from the task.

    Args:
        task: a name or the path of a YAML file.
        cfg: resolved from it.
    """
    solver = cfg.SOLVER
    parts = [
        f"{_detector(cfg)}, {_norms(cfg)}",
        cfg.TASK.NAME or f"{' + '.join(cfg.DATASETS.TRAIN)} to {' + '.join(cfg.DATASETS.TEST)}",
        f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH}",
        f"lr {solver.BASE_LR:g}",
        "fp16" if solver.AMP.ENABLED else cfg.TASK.PRECISION,
    ]
    before, after = flat(as_published(task)), flat(cfg)
    if before["TASK.PRECISION"] == "auto":
        before["TASK.PRECISION"] = after["TASK.PRECISION"]
    words = changed(before, after, NOT_RECORDED)
    return ", ".join(parts) + (f"; changed: {' '.join(words)}" if words else "")


def _detector(cfg: CfgNode) -> str:
    model, resnet = cfg.MODEL, cfg.MODEL.RESNETS
    groups, width = resnet.NUM_GROUPS, resnet.WIDTH_PER_GROUP
    network = f"{'X' if groups > 1 else 'R'}{resnet.DEPTH}" + f"-{groups}x{width}d" * ((groups, width) != (1, 64))
    if model.META_ARCHITECTURE == "RetinaNet":
        return f"RetinaNet {network}-FPN"
    kind = "Keypoint" if model.KEYPOINT_ON else "Mask" if model.MASK_ON else "Faster"
    if model.ROI_HEADS.NAME == "StandardROIHeads":
        head = model.ROI_BOX_HEAD
        return f"{kind} R-CNN {network}-FPN, box head of {head.NUM_CONV} conv and {head.NUM_FC} fc"
    return f"{kind} R-CNN {network}-C4" + " with extra norm" * model.ROI_HEADS.NAME.endswith("ExtraNorm")


def _norms(cfg: CfgNode) -> str:
    """Return which norm the backbone and the other parts have, e.g. "SyncBN in backbone, FPN"."""
    model, parts = cfg.MODEL, {"backbone": cfg.MODEL.RESNETS.NORM}
    if "fpn" in model.BACKBONE.NAME:
        parts["FPN"] = model.FPN.NORM
    if model.ROI_HEADS.NAME == "StandardROIHeads" and model.META_ARCHITECTURE != "RetinaNet":
        parts["box head"] = model.ROI_BOX_HEAD.NORM
        if model.MASK_ON:
            parts["mask head"] = model.ROI_MASK_HEAD.NORM
    kinds = {norm: [part for part, other in parts.items() if other == norm] for norm in parts.values() if norm}
    return ", ".join(f"{norm} in {', '.join(names)}" for norm, names in kinds.items())
