"""The data of a task: where they lie, and whether they are what the config says before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmseg.registry import DATASETS
from PIL import Image

from common.distributed import barrier, rank
from transfer.layouts import require_data
from transfer.scenes import CLASSES, PALETTE, ensure_scenes
from transfer.segmentation.tasks import LOADERS, datasets

LOOKED_AT = 64  # masks of each split whose labels are read beforehand
IGNORED = 255


def find(cfg: Config, root: Path) -> None:
    """Point every data set of a config below --data-root; Fashion Scenes are made where they are not there.

    Raises:
        ValueError: the tree is not there or incomplete; the message says what is missing and where to get it.
    """
    told: dict[str, Any] = {}
    if cfg.get("scenes"):
        if rank() == 0:
            ensure_scenes(root, **cfg.scenes)
        barrier()
        told["data_root"] = str(ensure_scenes(root, **cfg.scenes))
        told["metainfo"] = {"classes": ("background", *CLASSES), "palette": [[0, 0, 0], *PALETTE.tolist()]}
    else:
        if cfg.get("layout"):
            require_data(cfg.layout, root)
        told["data_root"] = str(root / cfg.data_root)
    for name in LOADERS:
        for dataset in datasets(cfg[name]):
            dataset.update(told)
    cfg.data_root = told["data_root"]


def check(cfg: Config) -> tuple[int, int]:
    """Look for every image and mask, compare classes with the head, read the labels of some masks, and count.

    Returns:
        The numbers of images to train on and to report on.

    Raises:
        ValueError: names what is missing or does not fit.
    """
    train, val = (_check_split(cfg, name) for name in LOADERS[:2])
    published = cfg.get("images")
    if published is not None and (train, val) != (published.train, published.val):
        raise ValueError(
            f"{cfg.data_root}: {train} images to train on and {val} to report on are not the {published.train} and "
            f"{published.val} of the published set; to go on with them, and have the record say so, add --cfg-options "
            f"images.train={train} images.val={val}"
        )
    return train, val


def _check_split(cfg: Config, name: str) -> int:
    try:
        built = [DATASETS.build({**dataset, "pipeline": []}) for dataset in datasets(cfg[name])]
        entries = [dataset.get_data_info(i) for dataset in built for i in range(len(dataset))]
        paths = [Path(entry[key]) for entry in entries for key in ("img_path", "seg_map_path")]
    except (AssertionError, OSError, TypeError, LookupError, AttributeError) as error:
        told = f"{name}.dataset cannot be read, {type(error).__name__}: {error}"
        raise ValueError(f"{cfg.data_root}: {told}; --data-root names the folder that it lies in") from error
    classes = len(built[0].metainfo["classes"] or ())
    for head in ("decode_head", "auxiliary_head"):
        found = cfg.model[head].num_classes if cfg.model.get(head) else classes
        if found != classes:
            raise ValueError(f"model.{head}.num_classes={found}: {cfg.data_root} has {classes} classes")
    absent = [path for path in paths if not path.is_file()]
    if absent:
        told = f"{len(absent)} of {len(paths)} files are missing, the first is {absent[0]}"
        raise ValueError(f"{cfg.data_root}: {told}")
    if not entries:
        raise ValueError(f"{cfg.data_root}: no images for {name}")
    for place in np.linspace(0, len(entries) - 1, min(LOOKED_AT, len(entries))).astype(int):
        _check_mask(Path(entries[place]["seg_map_path"]), classes + bool(built[0].reduce_zero_label))
    return len(entries)


def _check_mask(path: Path, classes: int) -> None:
    try:
        labels = np.asarray(Image.open(path))  # a palette's numbers, not its colours
    except (OSError, SyntaxError, ValueError) as error:  # all that PIL raises for a broken file
        raise ValueError(f"{path}: this mask cannot be read: {error}") from error
    if labels.ndim != 2:
        raise ValueError(f"{path}: {labels.shape} is no mask of class numbers; one channel or a palette is needed")
    strange = sorted(set(np.unique(labels).tolist()) - set(range(classes)) - {IGNORED})
    if strange:
        raise ValueError(f"{path}: labels {strange[:5]} are neither below {classes} nor {IGNORED} (ignored)")
