"""Data sets of mmdet's tasks: find or make them below --data-root, and list their images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS
from mmengine.config import Config

from transfer.detection.data import find_data as find_folder
from transfer.detection.mmdet_engine.config import class_settings, detection_limit
from transfer.openmmlab.config import LOADERS, datasets
from transfer.openmmlab.quiet import quiet
from transfer.scenes import CLASSES, ensure_scenes


@dataclass(frozen=True)
class Part:
    """One data set of a loader.

    Attributes:
        name: of its annotations, for people.
        config: in the task's config, its folder found.
        loader: that it is of, one of LOADERS.
        classes: names of its classes.
    """

    name: str
    config: Any
    loader: str
    classes: tuple[str, ...]

    @property
    def annotations(self) -> Path:
        """Its annotation file, or list of images."""
        return Path(self.config.data_root or "", self.config.ann_file)

    @property
    def folder(self) -> Path:
        """Folder of its images."""
        return Path(self.config.data_root or "", self.config.data_prefix.get("img", ""))


def find_data(cfg: Config, root: Path) -> None:
    """Set the folder of every data set of a config, below --data-root; Fashion Scenes are made if missing.

    Those of a user's data set (`own`) are set whatever --data-root is.

    Raises:
        ValueError: names what is missing and where to get it.
    """
    scenes = ensure_scenes(root, **cfg.scenes) if cfg.get("scenes") else None
    if cfg.get("layout"):
        find_folder(cfg.layout, (), root)
    for name in LOADERS:
        for dataset in datasets(cfg[name]):
            dataset.data_root = str(scenes or root / (dataset.get("data_root") or ""))
            if scenes:
                dataset.metainfo = {"classes": CLASSES}
            if own := cfg.get("own"):
                i = 0 if name == LOADERS[0] else 2
                dataset.update(ann_file=own.files[i], data_prefix={"img": own.files[i + 1]}, data_root="")
                dataset.metainfo = {"classes": tuple(own.classes)}
    tested = next(datasets(cfg.val_dataloader))
    cfg.val_evaluator = cfg.test_evaluator = {
        **cfg.val_evaluator, "data_root": tested.data_root, "ann_file": tested.get("ann_file", ""),
        "limit": detection_limit(cfg),
    }  # fmt: skip


def list_parts(cfg: Config, name: str) -> list[Part]:
    """Return the data sets of a loader; check that their class names are those of the files, and fit the heads.

    Args:
        cfg: with its data found.
        name: of the loader, one of LOADERS.

    Raises:
        ValueError: names what does not fit.
    """
    parts = []
    for config in datasets(cfg[name]):
        file = Path(config.data_root, config.get("ann_file", ""))
        parts.append(Part(f"{config.type} {file.stem}", config, name, _class_names(config)))
        if config.type == "CocoDataset":
            _compare_names(file, parts[-1].classes)
    for key, number in class_settings(cfg).items():
        if number != len(parts[0].classes):
            raise ValueError(f"{key}={number}: the data have {len(parts[0].classes)} classes; set it to that")
    if len({part.classes for part in parts}) > 1:
        raise ValueError(f"{name}.dataset: its data sets have different classes")
    return parts


def count_images(cfg: Config, train: Sequence[Part], val: Sequence[Part]) -> tuple[int, int]:
    """Return the number of training images and of test images that mmdet reads.

    Raises:
        ValueError: mmdet cannot read them, none is left, or they are not those that the config states.
    """
    found = sum(map(_images, train)), sum(map(_images, val))
    stated = cfg.get("images")
    if stated and found != (stated.train, stated.val):
        raise ValueError(
            f"{found[0]} training and {found[1]} test images are not the {stated.train} and {stated.val} of the "
            f"config, from which its iterations follow: correct `images` in {cfg.filename}"
        )
    return found


def _images(part: Part) -> int:
    """Return the number of images that mmdet reads of a data set, after building it."""
    try:
        with quiet(prints=False):  # pycocotools prints
            dataset = DATASETS.build({**part.config, "serialize_data": False})  # an empty one cannot be serialized
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{part.annotations}: mmdet cannot read it: {reason}; --check-data may say more") from error
    if not len(dataset):
        raise ValueError(
            f"{part.annotations}: no image for {part.loader} is left after "
            f"{part.loader}.dataset.filter_cfg={part.config.filter_cfg}"
        )
    return len(dataset)


def _class_names(config: Any) -> tuple[str, ...]:
    own = (config.get("metainfo") or {}).get("classes")
    names = own or DATASETS.get(config.type).METAINFO["classes"]
    return (names,) if isinstance(names, str) else tuple(names)


def _compare_names(file: Path, classes: Sequence[str]) -> None:
    """Check that a file's categories are the classes of a task: mmdet drops the objects of others without a word."""
    if not file.is_file():
        raise ValueError(f"{file}: no such annotation file; --data-root names the folder above it")
    try:
        found = [row["name"] for row in json.loads(file.read_bytes())["categories"]]
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{file}: no categories with names in COCO's format ({reason})") from error
    if found != list(classes):
        odd = [name for name in found if name not in classes][:3] or "none"
        lost = [name for name in classes if name not in found][:3] or "none"
        raise ValueError(
            f"{file}: its {len(found)} categories are not the task's {len(classes)} classes in the same order (only in "
            f"the file: {odd}; only in the task: {lost}): set metainfo.classes of every data set to the file's names"
        )
