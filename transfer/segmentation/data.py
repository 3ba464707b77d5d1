"""The data of a task: where they lie, and whether they are what the config says before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmseg.registry import DATASETS
from PIL import Image

from pretrain.distributed import barrier, rank
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
    if "scenes" in cfg:
        if rank() == 0:
            ensure_scenes(root, **cfg.scenes)
        barrier()
        told["data_root"] = str(ensure_scenes(root, **cfg.scenes))
        told["metainfo"] = {"classes": ("background", *CLASSES), "palette": [[0, 0, 0], *PALETTE.tolist()]}
    else:
        if "layout" in cfg:
            require_data(cfg.layout, root)
        told["data_root"] = str(root / cfg.data_root)
    for name in LOADERS:
        for dataset in datasets(cfg[name]):
            dataset.update(told)
    cfg.data_root = told["data_root"]


def check(cfg: Config) -> int:
    """Look for every image and mask, compare classes with the head, and read the labels of some masks.

    Returns:
        The number of images to train on.

    Raises:
        ValueError: names what is missing or does not fit.
    """
    counts = []
    for name in LOADERS[:2]:
        built = [DATASETS.build({**dataset, "pipeline": []}) for dataset in datasets(cfg[name])]
        classes = len(built[0].metainfo["classes"])
        for head in ("decode_head", "auxiliary_head"):
            found = cfg.model[head].num_classes if head in cfg.model else classes
            if found != classes:
                raise ValueError(f"model.{head}.num_classes={found}: {cfg.data_root} has {classes} classes")
        entries = [dataset.get_data_info(i) for dataset in built for i in range(len(dataset))]
        paths = [Path(entry[key]) for entry in entries for key in ("img_path", "seg_map_path")]
        absent = [path for path in paths if not path.is_file()]
        if absent:
            told = f"{len(absent)} of {len(paths)} files are missing, the first is {absent[0]}"
            raise ValueError(f"{cfg.data_root}: {told}")
        if not entries:
            raise ValueError(f"{cfg.data_root}: no images for {name}")
        for place in np.linspace(0, len(entries) - 1, min(LOOKED_AT, len(entries))).astype(int):
            _check_mask(Path(entries[place]["seg_map_path"]), classes + bool(built[0].reduce_zero_label))
        counts.append(len(entries))
    return counts[0]


def _check_mask(path: Path, classes: int) -> None:
    labels = np.asarray(Image.open(path))  # a palette's numbers, not its colours
    if labels.ndim != 2:
        raise ValueError(f"{path}: {labels.shape} is no mask of class numbers; one channel or a palette is needed")
    strange = sorted(set(np.unique(labels).tolist()) - set(range(classes)) - {IGNORED})
    if strange:
        raise ValueError(f"{path}: labels {strange[:5]} are neither below {classes} nor {IGNORED} (ignored)")
