"""Data sets by name, and batches that are a function of (seed, iteration).

detectron2's own training loader starts its order anew when a run is resumed, and draws augmentations from generators
that nobody saves. Here the order is drawn again up to the iteration where the run goes on, without reading an image,
and each image is augmented under a seed of its own: a resumed run sees what an uninterrupted one would have seen,
whatever the number of workers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.data.datasets import builtin, load_coco_json
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from transfer.layouts import require_data
from transfer.options import require
from transfer.scenes import PALETTE, ensure_scenes

FIT = 0.875  # share of the train scenes that settings are tried on; the others judge them
CITYSCAPES = "pip install --no-deps cityscapesscripts==2.3.0 shapely==2.2.0 pyquaternion==0.9.9"
Row = dict[str, Any]


def register(cfg: CfgNode, root: Path) -> None:
    """Makes the data sets of a task known to detectron2, from below `root`.

    Raises:
        ValueError: data are missing, or the task counts another number of classes than they have.
    """
    DatasetCatalog.clear()  # detectron2 has registered its own on import, below a folder of its choice
    MetadataCatalog.clear()
    if cfg.TASK.DATA == "fashion":
        _register_scenes(ensure_scenes(root, *cfg.TASK.SCENES))
    else:
        if cfg.TASK.DATA == "cityscapes":
            for package in ("cityscapesscripts", "shapely", "pyquaternion"):
                require(package, CITYSCAPES)
        require_data(cfg.TASK.DATA, root)
        builtin.register_all_coco(str(root))
        builtin.register_all_pascal_voc(str(root))
        builtin.register_all_cityscapes(str(root))
        for split in ("train", "val"):
            _register_lvis(f"lvis_v1_{split}", root / "lvis" / f"lvis_v1_{split}.json", root / "coco")
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        _check_classes(cfg, name)


def _register_scenes(folder: Path) -> None:
    """Train and val of Fashion Scenes; fit and held, the two parts of train, are for choosing settings."""
    parts = {
        "train": ("train", 0.0, 1.0),
        "val": ("val", 0.0, 1.0),
        "fit": ("train", 0.0, FIT),
        "held": ("train", FIT, 1),
    }
    for part, (split, begin, end) in parts.items():
        name, images = f"fashion_scenes_{part}", str(folder / "images" / split)
        file = folder / "annotations" / f"instances_{split}.json"
        if (begin, end) != (0.0, 1.0):
            file = _part_of(file, part, begin, end)

        def load(name: str = name, images: str = images, file: Path = file) -> list[Row]:
            return load_coco_json(str(file), images, name)

        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(
            json_file=str(file), image_root=images, evaluator_type="coco", thing_colors=PALETTE.tolist()
        )


def _part_of(file: Path, part: str, begin: float, end: float) -> Path:
    """Writes the images from `begin` to `end` of an annotation file, shares of all, beside it; once."""
    target = file.with_name(f"{file.stem}_{part}.json")
    if not target.exists():
        content = json.loads(file.read_text())
        count = len(content["images"])
        content["images"] = content["images"][round(begin * count) : round(end * count)]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
        target.write_text(json.dumps(content))
    return target


def _register_lvis(name: str, file: Path, images: Path) -> None:
    """LVIS without the package `lvis`, which needs an older numpy: images lie in COCO's folders, ids are places + 1."""

    def load() -> list[Row]:
        content = json.loads(file.read_text())
        found: dict[int, list[Row]] = {image["id"]: [] for image in content["images"]}
        for row in content["annotations"]:
            found[row["image_id"]].append({
                "bbox": row["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "category_id": row["category_id"] - 1,
                "segmentation": row["segmentation"],
            })  # fmt: skip
        return [
            {
                "file_name": str(images.joinpath(*image["coco_url"].split("/")[-2:])), "image_id": image["id"],
                "height": image["height"], "width": image["width"], "annotations": found[image["id"]],
            }
            for image in sorted(content["images"], key=lambda image: image["id"])
        ]  # fmt: skip

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=str(file), evaluator_type="lvis", **get_lvis_instances_meta(name)
    )  # fmt: skip


def _check_classes(cfg: CfgNode, name: str) -> None:
    if name not in DatasetCatalog:
        raise ValueError(f"DATASETS: {name} is unknown; there are {', '.join(sorted(DatasetCatalog.list()))}")
    if not MetadataCatalog.get(name).get("thing_classes"):
        DatasetCatalog.get(name)  # COCO's loader finds the names in the file
    classes = MetadataCatalog.get(name).thing_classes
    key = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    if len(classes) != cfg.MODEL[key].NUM_CLASSES:
        raise ValueError(
            f"MODEL.{key}.NUM_CLASSES is {cfg.MODEL[key].NUM_CLASSES}, and {name} has {len(classes)} classes: "
            f"set it to {len(classes)}"
        )


def training_loader(cfg: CfgNode) -> DataLoader:
    """Batches of training images without end; `loader.batch_sampler.start` is the iteration to begin with."""
    rows = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
    )  # fmt: skip
    if cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler":
        order: Sampler = TrainingSampler(len(rows), seed=cfg.SEED)
    elif cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        repeats = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            rows, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        order = RepeatFactorTrainingSampler(repeats, seed=cfg.SEED)
    else:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN}: use TrainingSampler or "
            "RepeatFactorTrainingSampler"
        )
    wide = [row["width"] > row["height"] for row in rows] if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None
    batches = Batches(order, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), wide)
    return DataLoader(
        Augmented(rows, DatasetMapper(cfg, is_train=True), cfg.SEED), batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=_as_it_is,
        generator=torch.Generator(),  # else it draws from torch's own where a run begins, and where it is resumed
    )  # fmt: skip


class Batches(Sampler[list[tuple[int, int]]]):
    """Batches of (place in the order, image), of images that are all wide or all tall where `wide` is given.

    The same batches as detectron2's AspectRatioGroupedDataset makes of the same order, from `start` on.
    """

    def __init__(self, order: Sampler[int], size: int, wide: list[bool] | None = None) -> None:
        self.order, self.size, self.wide = order, size, wide
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._all(), self.start, None)

    def _all(self) -> Iterator[list[tuple[int, int]]]:
        buckets: tuple[list[tuple[int, int]], ...] = ([], [])
        for place, image in enumerate(self.order):
            bucket = buckets[self.wide[image] if self.wide else 0]
            bucket.append((place, image))
            if len(bucket) == self.size:
                yield bucket.copy()
                bucket.clear()


class Augmented(Dataset[Row]):
    """Images as the mapper augments them, each under the seed (seed, rank, place in the order)."""

    def __init__(self, rows: list[Row], mapper: DatasetMapper, seed: int) -> None:
        self.rows, self.mapper, self.seed = DatasetFromList(rows, copy=False), mapper, seed
        self.rank = comm.get_rank()

    def __getitem__(self, wanted: tuple[int, int]) -> Row:
        place, image = wanted
        # detectron2's augmentations draw from numpy's global generator
        np.random.seed(np.random.SeedSequence((self.seed, self.rank, place)).generate_state(4))
        return self.mapper(self.rows[image])


def _as_it_is(rows: list[Row]) -> list[Row]:
    return rows
