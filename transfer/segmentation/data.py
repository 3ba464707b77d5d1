"""Data sets of the segmentation tasks: find or make them below --data-root, and check them before training."""

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
from transfer.segmentation.config import LOADERS, datasets
from transfer.segmentation.pictures import IGNORED

CHECKED = 64  # masks per split whose labels are read before training


def find_data(cfg: Config, root: Path) -> None:
    """Set the folder of every data set of a config, below --data-root; Fashion Scenes are made if missing.

    Raises:
        ValueError: names what is missing and where to get it.
    """
    settings: dict[str, Any] = {}
    if cfg.get("scenes"):
        if rank() == 0:
            ensure_scenes(root, **cfg.scenes)
        barrier()
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


def check_data(cfg: Config) -> tuple[int, int]:
    """Check that every image and mask exists, that the classes fit the head, and the labels of some masks.

    Returns:
        The number of training images and of test images.

    Raises:
        ValueError: names what is missing or does not fit.
    """
    train, val = (_check_split(cfg, name) for name in LOADERS[:2])
    published = cfg.get("images")
    if published is not None and (train, val) != (published.train, published.val):
        raise ValueError(
            f"{cfg.data_root}: {train} training and {val} test images are not the {published.train} and "
            f"{published.val} of the published set; to use them, and record that, add --cfg-options "
            f"images.train={train} images.val={val}"
        )
    return train, val


def _check_split(cfg: Config, name: str) -> int:
    try:
        built = [DATASETS.build({**dataset, "pipeline": []}) for dataset in datasets(cfg[name])]
        entries = [dataset.get_data_info(i) for dataset in built for i in range(len(dataset))]
        paths = [Path(entry[key]) for entry in entries for key in ("img_path", "seg_map_path")]
    except (AssertionError, OSError, TypeError, LookupError, AttributeError) as error:
        reason = f"{name}.dataset cannot be read, {type(error).__name__}: {error}"
        raise ValueError(f"{cfg.data_root}: {reason}; --data-root names the folder above it") from error
    classes = len(built[0].metainfo["classes"] or ())
    for head in ("decode_head", "auxiliary_head"):
        found = cfg.model[head].num_classes if cfg.model.get(head) else classes
        if found != classes:
            raise ValueError(f"model.{head}.num_classes={found}: {cfg.data_root} has {classes} classes")
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise ValueError(f"{cfg.data_root}: {len(absent)} of {len(paths)} files are missing, the first is {absent[0]}")
    if not entries:
        raise ValueError(f"{cfg.data_root}: no images for {name}")
    for index in np.linspace(0, len(entries) - 1, min(CHECKED, len(entries))).astype(int):
        _check_mask(Path(entries[index]["seg_map_path"]), classes + bool(built[0].reduce_zero_label))
    return len(entries)


def _check_mask(path: Path, classes: int) -> None:
    try:
        labels = np.asarray(Image.open(path))  # indices of a palette, not its colours
    except (OSError, SyntaxError, ValueError) as error:  # all that PIL raises for a broken file
        raise ValueError(f"{path}: this mask cannot be read: {error}") from error
    if labels.ndim != 2:
        raise ValueError(f"{path}: {labels.shape} is no mask of class indices; it needs one channel or a palette")
    unknown = sorted(set(np.unique(labels).tolist()) - set(range(classes)) - {IGNORED})
    if unknown:
        raise ValueError(f"{path}: labels {unknown[:5]} are neither below {classes} nor {IGNORED} (ignored)")
