"""Data sets of the segmentation tasks: find or make them below --data-root, and list their images and masks."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmengine
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from common.folders import EXTENSIONS, walk
from transfer.layouts import require_data
from transfer.openmmlab.config import LOADERS, datasets
from transfer.openmmlab.quiet import quiet
from transfer.scenes import CLASSES, PALETTE, ensure_scenes
from transfer.segmentation import own


def find_data(cfg: Config, root: Path) -> None:
    """Set the folder of every data set of a config, below --data-root; Fashion Scenes are made if missing.

    Raises:
        ValueError: names what is missing and where to get it.
    """
    settings: dict[str, Any] = {}
    if cfg.get("own"):
        settings = own.settings(cfg.own)
    elif cfg.get("scenes"):
        settings["data_root"] = str(ensure_scenes(root, **cfg.scenes))
        settings["metainfo"] = {"classes": ("background", *CLASSES), "palette": [[0, 0, 0], *PALETTE.tolist()]}
    else:
        if cfg.get("layout"):
            require_data(cfg.layout, root)
        settings["data_root"] = str(root / cfg.data_root)
    for name in LOADERS:
        for dataset in datasets(cfg[name]):
            dataset.update(settings)
    cfg.data_root = settings["data_root"]


@dataclass(frozen=True)
class Part:
    """One data set of a loader, with its pipeline.

    Attributes:
        where: its key in the config, for errors.
        dataset: mmseg's.
        entry: what the reader of masks must know, the same for all: label_map, reduce_zero_label.
        images: the images.
        masks: the mask of each image.
    """

    where: str
    dataset: Any
    entry: dict[str, Any]
    images: list[Path]
    masks: list[Path]


def list_parts(cfg: Config, name: str) -> list[Part]:
    """Build the data sets of a loader; check that each image has a mask, and that the classes fit the heads.

    Args:
        cfg: with its data found.
        name: of the loader, one of LOADERS.

    Raises:
        ValueError: names what mmseg cannot read, what is missing or does not fit.
    """
    parts = []
    for config in datasets(cfg[name]):
        where = f"{name}.dataset"
        try:
            with quiet():
                dataset = DATASETS.build({**config, "serialize_data": False})  # an empty one cannot be serialized
                entries = [dataset.get_data_info(i) for i in range(len(dataset))]
            images, masks = ([Path(entry[key]) for entry in entries] for key in ("img_path", "seg_map_path"))
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ELOOP:
                link = next(path for path in reversed(Path(error.filename).parents) if path.is_symlink())
                raise ValueError(f"{link}: a link to a folder that encloses it; remove it") from error
            reason = f"{where} cannot be read, {type(error).__name__}: {error}"
            raise ValueError(f"{cfg.data_root}: {reason}; --data-root names the folder above it") from error
        if not entries:
            raise ValueError(f"{cfg.data_root}: no images for {name}")
        entry = {key: entries[0].get(key) for key in ("label_map", "reduce_zero_label")}
        parts.append(Part(where, dataset, entry, images, masks))
    classes = class_names(parts)
    for head in ("decode_head", "auxiliary_head"):
        found = cfg.model[head].num_classes if cfg.model.get(head) else len(classes)
        if found != len(classes):
            raise ValueError(f"model.{head}.num_classes={found}: {cfg.data_root} has {len(classes)} classes")
    for part in parts:
        _check_names(part)
    return parts


def class_names(parts: Sequence[Part]) -> list[str]:
    """Return the names of the classes of a loader.

    Raises:
        ValueError: its data sets have different classes.
    """
    names = {tuple(part.dataset.metainfo.get("classes") or ()) for part in parts}
    if len(names) > 1:
        raise ValueError(f"{parts[0].where}: its data sets have different classes: {' and '.join(map(str, names))}")
    return list(names.pop())


def count_images(cfg: Config, train: Sequence[Part], val: Sequence[Part]) -> tuple[int, int]:
    """Return the number of training images and of test images.

    Raises:
        ValueError: they are not those of the published set.
    """
    found = tuple(sum(len(part.images) for part in parts) for parts in (train, val))
    published = cfg.get("images")
    if published is not None and found != (published.train, published.val):
        raise ValueError(
            f"{cfg.data_root}: {found[0]} training and {found[1]} test images are not the {published.train} and "
            f"{published.val} of the published set; to use them, and record that, add --cfg-options "
            f"images.train={found[0]} images.val={found[1]}"
        )
    return found[0], found[1]


def _check_names(part: Part) -> None:
    """Check that every image is listed once and has its mask, and every mask its image.

    Raises:
        ValueError: names the file, and the line of the list.
    """
    dataset = part.dataset
    lines: list[str] = []
    if type(dataset).load_data_list is BaseSegDataset.load_data_list and dataset._indices is None:
        if os.path.isfile(dataset.ann_file):
            lines = mmengine.list_from_file(dataset.ann_file)
            _check_list(Path(dataset.ann_file), lines)
        else:
            _check_folders(part)
    paths = [(path, i) for i, pair in enumerate(zip(part.images, part.masks, strict=True)) for path in pair]
    absent = [(path, i) for path, i in paths if not path.is_file()]
    if absent:
        path, i = absent[0]
        line = f" ({dataset.ann_file}, line {i + 1}: {lines[i]!r})" if lines else f" (image {part.images[i]})"
        raise ValueError(
            f"{dataset.data_root}: {len(absent)} of {len(paths)} files are missing, the first is {path}{line}"
        )


def _check_list(path: Path, lines: Sequence[str]) -> None:
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            raise ValueError(f"{path}, line {number}: blank; remove it")
        if name in names:
            raise ValueError(f"{path}, line {number}: {name} stands in line {names[name]} too; remove one")
        names[name] = number


def _check_folders(part: Part) -> None:
    """Check the files of a data set without a list: its images are those below a folder."""
    dataset = part.dataset
    for key, suffix, used in (
        ("img_path", dataset.img_suffix, part.images), ("seg_map_path", dataset.seg_map_suffix, part.masks),
    ):  # fmt: skip
        if not suffix.lower().endswith(EXTENSIONS):
            continue
        folder = Path(dataset.data_prefix[key])
        there = {folder / name for name in walk(folder).images if name.endswith(suffix)}
        if key == "img_path" and (hidden := sorted(set(used) - there)):
            raise ValueError(
                f"{hidden[0]}: {len(hidden)} images lie in hidden folders or are reached by links a second time, and "
                "mmseg would read them; remove these folders or links"
            )
        if key == "seg_map_path" and (alone := sorted(there - set(used))):
            raise ValueError(
                f"{alone[0]}: {len(alone)} of {len(there)} masks have no image that ends in {dataset.img_suffix} below "
                f"{dataset.data_prefix['img_path']}: add the images, set img_suffix, or move the masks away"
            )
