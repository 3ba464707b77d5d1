"""The task of a user's detection data set as a config of detectron2."""

from __future__ import annotations

import math

import yaml

from transfer.detection.data import OWN_SPLITS as SPLITS
from transfer.own_data.detection import DetectionData
from transfer.own_data.protocols import Fit, Protocol
from transfer.tasks import DETECTION

SIZES = "INPUT.MIN_SIZE_TEST and INPUT.MIN_SIZE_TRAIN"


def compose(data: DetectionData, protocol: Protocol, fit: Fit) -> str:
    """Return the config of a task in YAML."""
    settings = {
        "_BASE_": str(DETECTION.folder / protocol.base),
        "INPUT": {
            "MIN_SIZE_TRAIN": fit.sides,
            "MIN_SIZE_TEST": fit.short,
            "MAX_SIZE_TRAIN": fit.long,
            "MAX_SIZE_TEST": fit.long,
            "MASK_FORMAT": "bitmask" if data.encoded else "polygon",
        },
        "MODEL": {
            "MASK_ON": data.masks and protocol.masks,
            "ROI_HEADS": {"NUM_CLASSES": len(data.classes)},
            "RETINANET": {"NUM_CLASSES": len(data.classes)},
        } | ({"BACKBONE": {"FREEZE_AT": 5}} if protocol.frozen else {}),
        "DATASETS": {"TRAIN": [SPLITS[0]], "TEST": [SPLITS[1]]},
        "SOLVER": {
            "BASE_LR": protocol.rate,
            "STEPS": fit.steps,
            "MAX_ITER": fit.iterations,
            "WARMUP_ITERS": fit.warm_up,
        },
        "TEST": {
            "DETECTIONS_PER_IMAGE": fit.limit,
            "PRECISE_BN": {"NUM_ITER": min(200, math.ceil(data.trained / 2))},
        },
        "TASK": {
            "DATA": "own",
            "HEADLINE": "bbox/AP",
            "IDENTITY": data.identity,
            "NAME": data.name,
            "FILES": list(data.files),
            "OVERLAP": data.overlap,
        },
    }  # fmt: skip
    return yaml.safe_dump(settings, sort_keys=False, width=120, allow_unicode=True)
