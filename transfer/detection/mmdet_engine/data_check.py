"""Check the data sets of a task, each by what the evaluation of it reads."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from transfer.detection.annotations import Needs
from transfer.detection.cityscapes_check import check_cityscapes
from transfer.detection.coco_check import check_coco
from transfer.detection.data import describe_checks
from transfer.detection.mmdet_engine.config import detection_limit
from transfer.detection.mmdet_engine.data import Part, count_images, list_parts
from transfer.detection.voc_check import check_voc
from transfer.openmmlab.config import LOADERS


def check_data(cfg: Config) -> str:
    """Read all images' headers and annotations of a task, train and test, and score perfect detections.

    Args:
        cfg: with its data found.

    Returns:
        What was checked, in words.

    Raises:
        ValueError: names the file that is wrong and how to mend it.
    """
    train, test = (list_parts(cfg, name) for name in LOADERS[:2])
    checked = [[_check(cfg, part, test=scored) for part in parts] for parts, scored in ((train, False), (test, True))]
    count_images(cfg, train, test)
    return describe_checks(*checked)


def _check(cfg: Config, part: Part, test: bool) -> tuple[str, list[str]]:
    if part.config.type == "VOCDataset":
        return check_voc(part.name, part.annotations.parents[2], part.annotations.stem, part.classes, test)
    if part.config.type == "CityscapesInstances":
        truth = Path(part.config.data_root, part.config.data_prefix["seg"])
        return check_cityscapes(part.name, part.folder, truth, test)
    kinds = tuple(cfg.val_evaluator.metric)
    needs = Needs(test, kinds, len(part.classes), limit=detection_limit(cfg))
    return check_coco(part.name, part.annotations, part.folder, needs)
