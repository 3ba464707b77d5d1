"""The task of a user's detection data set as a config of mmdet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.files import write_text
from transfer.detection.evaluation import complete
from transfer.own_data.detection import DetectionData
from transfer.own_data.mmengine_yaml import dump
from transfer.own_data.protocols import Fit, Protocol
from transfer.tasks import MMDET

Step = dict[str, Any]
Steps = list[Step]

SIZES = "train_dataloader.dataset.pipeline.2.scales and val_dataloader.dataset.pipeline.1.scale of --cfg-options"
PROCESSES = 8  # of the protocols, with 2 images each
PLACE = {"data_root": "", "ann_file": "", "data_prefix": {"img": ""}}  # set from `own` when a run starts
META = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")  # of an image, for the evaluation


def compose(data: DetectionData, protocol: Protocol, fit: Fit) -> str:
    """Return the config of a task in YAML, after writing the annotations that mmdet cannot read."""
    masks = data.masks and protocol.masks
    bases = ("runtime", protocol.mmdet[masks], "coco-masks" if masks else "coco-boxes", "1x")
    train, val = _pipelines(fit, masks)
    interval = max(1, fit.iterations // 4)
    return dump({
        "_base_": [str(MMDET.folder / "bases" / f"{name}.yaml") for name in bases],
        "layout": "",
        "reference_processes": PROCESSES,
        "freeze_backbone": protocol.frozen,
        "identity": data.identity,
        "own": {
            "name": data.name, "identity": data.identity, "files": _readable(data), "classes": data.classes,
            "overlap": data.overlap,
        },
        "model": _model(data, protocol, fit, masks),
        "train_dataloader": {"dataset": {**PLACE, "filter_cfg": {"min_size": 0}, "pipeline": train}},
        "val_dataloader": {"dataset": {**PLACE, "pipeline": val}},
        "test_dataloader": {"dataset": {**PLACE, "pipeline": val}},
        "optim_wrapper": {"optimizer": {"lr": protocol.rate}},
        "param_scheduler": _schedulers(fit),
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": fit.iterations, "val_interval": interval},
        "default_hooks": {"checkpoint": {"interval": interval}},
    })  # fmt: skip


def _schedulers(fit: Fit) -> list[dict[str, Any]]:
    common = {"by_epoch": False, "begin": 0}
    warm_up = {"type": "LinearLR", "start_factor": 0.001, **common, "end": fit.warm_up}
    steps = {"type": "MultiStepLR", **common, "end": fit.iterations, "milestones": fit.steps, "gamma": 0.1}
    return [warm_up, steps] if fit.warm_up else [steps]  # mmengine refuses one of no iterations


def _model(data: DetectionData, protocol: Protocol, fit: Fit, masks: bool) -> dict[str, Any]:
    heads = {name: {"num_classes": len(data.classes)} for name in ("bbox_head", *["mask_head"] * masks)}
    if protocol.mmdet[0] == "retinanet":
        return {**heads, "test_cfg": {"max_per_img": fit.limit}}
    return {"roi_head": heads, "test_cfg": {"rcnn": {"max_per_img": fit.limit}}}


def _pipelines(fit: Fit, masks: bool) -> tuple[Steps, Steps]:
    """Return the transforms of training and of test images."""
    load: Step = {"type": "LoadImageFromFile"}
    annotate: Step = {"type": "LoadAnnotations", "with_bbox": True, "with_mask": masks}
    train: Steps = [
        load, annotate,
        {"type": "RandomChoiceResize", "keep_ratio": True, "scales": [(fit.long, side) for side in fit.sides]},
        {"type": "RandomFlip", "prob": 0.5}, {"type": "PackDetInputs"},
    ]  # fmt: skip
    val: Steps = [
        load, {"type": "Resize", "scale": (fit.long, fit.short), "keep_ratio": True},
        annotate,  # after Resize: of the image's own size
        {"type": "PackDetInputs", "meta_keys": META},
    ]  # fmt: skip
    return train, val


def _readable(data: DetectionData) -> list[str]:
    """Return annotations and images of train and of val; annotations that mmdet cannot read are written anew.

    It numbers classes in the order of the file, and needs the areas of the objects.
    """
    files = [*data.files]
    for i, part in ((0, "train"), (2, "val")):
        content = json.loads(Path(files[i]).read_bytes())
        ordered = sorted(content["categories"], key=lambda row: data.classes.index(str(row.get("name"))))
        if _add_areas(content) or ordered != content["categories"]:
            content["categories"] = ordered
            files[i] = str((data.folder / "mmdet" / f"{part}.json").absolute())
            write_text(Path(files[i]), json.dumps(content))
    return files


def _add_areas(content: dict[str, Any]) -> bool:
    """Add areas where they are missing; return whether any were. The check says what is wrong where they cannot be."""
    if all("area" in row for row in content["annotations"]):
        return False
    try:
        return bool(complete(content))
    except (KeyError, TypeError, ValueError):
        return False
