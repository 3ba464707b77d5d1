"""The task of a user's detection data set: a protocol of the literature, its schedule and sizes set by the data."""

from __future__ import annotations

from pathlib import Path

from common.files import write_text
from transfer.own_data import detectron2_task, mmdet_task
from transfer.own_data.detection import DetectionData, describe
from transfer.own_data.options import epochs_for
from transfer.own_data.protocols import PROTOCOLS, Fit

BATCH = 16  # images per iteration of the protocols, on 8 devices
COCO_IMAGES, EPOCHS = 118_287, (12, 100)  # of train2017 and of its 1x schedule; the most for small data sets
SHORT = (256, 800)  # least and largest short side of a test image, pixels; 800 is COCO's
LIMIT = 100  # least detections per image
ENGINES = {"detectron2": detectron2_task, "mmdet": mmdet_task}


def write_task(data: DetectionData, protocol: str, epochs: float | None, engine: str) -> tuple[Path, list[str]]:
    """Write the task of a data set as a config of an engine; return its file, and what was chosen, in words.

    Args:
        data: the data set.
        protocol: a key of PROTOCOLS.
        epochs: of the schedule; None: by the number of training images.
        engine: a key of ENGINES.

    Raises:
        ValueError: there is nothing to train on, or `epochs` is not positive.
    """
    if not data.trained:
        raise ValueError(f"{data.files[0]}: no training image has an object")
    count = epochs_for(data.trained, COCO_IMAGES, EPOCHS, epochs)
    short = min(max(data.sides[0], SHORT[0]), SHORT[1])
    fit = Fit(max(1, round(count * data.trained / BATCH)), short, max(LIMIT, data.most))
    how = f"12 x sqrt({COCO_IMAGES:,} / images), {EPOCHS[0]} to {EPOCHS[1]}; --epochs changes it"
    said = [
        f"data: {describe(data)}", *(f"note: {note}" for note in data.notes),
        f"schedule: {count:.3g} epochs of the {data.trained:,} training images with objects, {fit.iterations:,} "
        f"iterations of {BATCH} ({how if epochs is None else '--epochs'})",
        f"input: short side {short} px, the images' median within {SHORT[0]} to {SHORT[1]} "
        f"({ENGINES[engine].SIZES} change it)",
    ]  # fmt: skip
    path = data.folder / engine / f"own-{data.name}-{protocol}.yaml"  # no name of a task of this project
    command = f"python transfer/detect.py --ckpt CHECKPOINT --task {path} --engine {engine}"
    head = f"# {command}\n# Protocol {protocol} on {describe(data)}\n"
    write_text(path, head + ENGINES[engine].compose(data, PROTOCOLS[protocol], fit))
    return path, said
