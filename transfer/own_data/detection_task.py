"""The task of a user's detection data set: a protocol of the literature, its schedule and sizes set by the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from common.files import write_text
from transfer.detection.data import OWN_SPLITS as SPLITS
from transfer.own_data.detection import DetectionData, describe
from transfer.own_data.options import epochs_for
from transfer.own_data.protocols import PROTOCOLS, Protocol
from transfer.tasks import DETECTION

BATCH = 16  # images per iteration of the protocols, on 8 devices
COCO_IMAGES, EPOCHS = 118_287, (12, 100)  # of train2017 and of its 1x schedule; the most for small data sets
SHORT = (256, 800)  # least and largest short side of a test image, pixels; 800 is COCO's
LONG = 1333 / 800  # longest side, of COCO's
TRAINING = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)  # short sides in training, of the one in the test; COCO's 640 to 800


def write_task(data: DetectionData, protocol: str, epochs: float | None) -> tuple[Path, list[str]]:
    """Write the task of a data set as a config of detectron2; return its file, and what was chosen, in words.

    Args:
        data: the data set.
        protocol: a key of PROTOCOLS.
        epochs: of the schedule; None: by the number of training images.

    Raises:
        ValueError: there is nothing to train on, or `epochs` is not positive.
    """
    if not data.trained:
        raise ValueError(f"{data.files[0]}: no training image has an object")
    count = epochs_for(data.trained, COCO_IMAGES, EPOCHS, epochs)
    iterations = max(1, round(count * data.trained / BATCH))
    short = min(max(data.sides[0], SHORT[0]), SHORT[1])
    how = f"12 x sqrt({COCO_IMAGES:,} / images), {EPOCHS[0]} to {EPOCHS[1]}; --epochs changes it"
    said = [
        f"data: {describe(data)}", *(f"note: {note}" for note in data.notes),
        f"schedule: {count:.3g} epochs of the {data.trained:,} training images with objects, {iterations:,} iterations "
        f"of {BATCH} ({how if epochs is None else '--epochs'})",
        f"input: short side {short} px, the images' median within {SHORT[0]} to {SHORT[1]} (INPUT.MIN_SIZE_TEST and "
        "INPUT.MIN_SIZE_TRAIN change it)",
    ]  # fmt: skip
    settings = _settings(data, PROTOCOLS[protocol], iterations, short)
    path = data.folder / f"own-{data.name}-{protocol}.yaml"  # no name of a task of this project
    head = f"# python transfer/detect.py --ckpt CHECKPOINT --task {path}\n# Protocol {protocol} on {describe(data)}\n"
    write_text(path, head + yaml.safe_dump(settings, sort_keys=False, width=120, allow_unicode=True))
    return path, said


def _settings(data: DetectionData, protocol: Protocol, iterations: int, short: int) -> dict[str, Any]:
    masks = data.masks and protocol.masks
    return {
        "_BASE_": str(DETECTION.folder / protocol.base),
        "INPUT": {
            "MIN_SIZE_TRAIN": [round(part * short) for part in TRAINING],
            "MIN_SIZE_TEST": short,
            "MAX_SIZE_TRAIN": round(LONG * short),
            "MAX_SIZE_TEST": round(LONG * short),
            "MASK_FORMAT": "bitmask" if data.encoded else "polygon",
        },
        "MODEL": {
            "MASK_ON": masks,
            "ROI_HEADS": {"NUM_CLASSES": len(data.classes)},
            "RETINANET": {"NUM_CLASSES": len(data.classes)},
            **dict(protocol.settings),
        },
        "DATASETS": {"TRAIN": [SPLITS[0]], "TEST": [SPLITS[1]]},
        "SOLVER": {
            "BASE_LR": protocol.rate,
            "STEPS": [math.ceil(iterations * part) for part in (2 / 3, 8 / 9)],
            "MAX_ITER": iterations,
            "WARMUP_ITERS": min(1000, iterations // 10),
        },
        "TEST": {
            "DETECTIONS_PER_IMAGE": max(100, data.most),
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
    }
