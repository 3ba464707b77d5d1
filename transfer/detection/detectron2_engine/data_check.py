"""Check the data sets of a task, each by what detectron2's evaluator of it reads."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from transfer.detection.annotations import Needs
from transfer.detection.cityscapes_check import check_cityscapes
from transfer.detection.coco_check import check_coco
from transfer.detection.data import describe_checks
from transfer.detection.detectron2_engine.data import number_of_classes, register
from transfer.detection.detectron2_engine.evaluation import metric_kinds
from transfer.detection.voc_check import check_voc


def check_data(cfg: CfgNode, root: Path) -> str:
    """Read all images' headers and annotations of a task, train and test, and score perfect detections.

    Args:
        cfg: of the run.
        root: --data-root.

    Returns:
        What was checked, in words.

    Raises:
        ValueError: names the file that is wrong and how to mend it.
    """
    register(cfg, root)
    train = [_check(cfg, name, test=False) for name in cfg.DATASETS.TRAIN]
    test = [_check(cfg, name, test=True) for name in cfg.DATASETS.TEST]
    return describe_checks(train, test)


def _check(cfg: CfgNode, name: str, test: bool) -> tuple[str, list[str]]:
    meta = MetadataCatalog.get(name)
    kind = meta.evaluator_type
    if kind == "pascal_voc":
        return check_voc(name, Path(meta.dirname), meta.split, meta.thing_classes, test)
    if kind == "cityscapes_instance":
        return check_cityscapes(name, Path(meta.image_dir), Path(meta.gt_dir), test)
    ids = meta.get("thing_dataset_id_to_contiguous_id", {}) if cfg.TASK.DATA != "fashion" else {}
    needs = Needs(
        test, metric_kinds(cfg), number_of_classes(cfg)[1], tuple((i, meta.thing_classes[at]) for i, at in ids.items()),
        cfg.INPUT.MASK_FORMAT == "polygon" and not test, kind == "lvis", cfg.TEST.DETECTIONS_PER_IMAGE,
    )  # fmt: skip
    return check_coco(name, Path(meta.json_file), Path(meta.image_root), needs)
