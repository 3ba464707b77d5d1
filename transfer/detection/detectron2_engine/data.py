"""Data sets of detectron2, and training batches that are a function of (seed, iteration).

detectron2's own training loader restarts its order when a run is resumed, and draws augmentations from generators that
no checkpoint holds. Here the order is drawn again up to the resumed iteration, without reading an image, and each image
is augmented under a seed of its own: a resumed run trains on the batches of an uninterrupted one, for any number of
workers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

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

from common.workers import protect
from transfer.detection.data import find_data, own_splits, scene_splits
from transfer.detection.voc import read_voc
from transfer.headers import read_header

Row = dict[str, Any]


def register(cfg: CfgNode, root: Path) -> None:
    """Register the data sets of a task with detectron2.

    Args:
        cfg: of the run.
        root: --data-root.

    Raises:
        ValueError: data are missing, or the task has another number of classes than they have.
    """
    own = cfg.TASK.DATA == "own"
    folder = root if own else find_data(cfg.TASK.DATA, cfg.TASK.SCENES, root)
    DatasetCatalog.clear()  # on import detectron2 registers its own, below a folder of its choice
    MetadataCatalog.clear()
    if own or cfg.TASK.DATA == "fashion":
        for name, (file, images) in (own_splits(cfg.TASK.FILES) if own else scene_splits(folder)).items():
            DatasetCatalog.register(name, partial(load_coco_json, str(file), str(images), name))
            MetadataCatalog.get(name).set(json_file=str(file), image_root=str(images), evaluator_type="coco")
    else:
        builtin.register_all_coco(str(folder))
        builtin.register_all_pascal_voc(str(folder))
        builtin.register_all_cityscapes(str(folder))
        for split in ("train", "val"):
            _register_lvis(f"lvis_v1_{split}", folder / "lvis" / f"lvis_v1_{split}.json", folder / "coco")
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        if name not in DatasetCatalog:
            raise ValueError(f"DATASETS: {name} is unknown; use one of {', '.join(sorted(DatasetCatalog.list()))}")
        load = DatasetCatalog[name]
        if MetadataCatalog.get(name).get("evaluator_type") == "pascal_voc":
            load = partial(_load_voc, name)  # detectron2's own wants more than VOC's format does
        DatasetCatalog[name] = partial(_load, name, load)
        _check_classes(cfg, name)


def _load(name: str, load: Callable[[], list[Row]]) -> list[Row]:
    """Read a data set; whatever a file makes detectron2 raise is a ValueError that names the file."""
    meta = MetadataCatalog.get(name)
    source = meta.get("json_file") or meta.get("dirname") or meta.get("gt_dir")
    try:
        return load()
    except Exception as error:
        if isinstance(error, ValueError | OSError) and str(source) in str(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{source}: detectron2 cannot read {name}: {reason}; --check-data may say more") from error


def _load_voc(name: str) -> list[Row]:
    meta = MetadataCatalog.get(name)
    rows = []
    for image in read_voc(Path(meta.dirname), meta.split, meta.thing_classes):
        boxes = image.boxes - (1, 1, 0, 0)  # left and top count from 1 in VOC; right and bottom are inside the box
        file = Path(meta.dirname) / "JPEGImages" / f"{image.name}.jpg"
        width, height = image.size or read_header(file)
        rows.append({
            "file_name": str(file), "image_id": image.name, "width": width, "height": height,
            "annotations": [
                {"category_id": label, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}
                for label, box in zip(image.labels.tolist(), boxes.tolist(), strict=True)
            ],
        })  # fmt: skip
    return rows


def _register_lvis(name: str, file: Path, images: Path) -> None:
    """Register LVIS without the package `lvis`, which needs an older numpy. Class ids start at 1."""

    def load() -> list[Row]:
        content = json.loads(file.read_bytes())
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
    meta = get_lvis_instances_meta(name)
    MetadataCatalog.get(name).set(json_file=str(file), image_root=str(images), evaluator_type="lvis", **meta)


def _check_classes(cfg: CfgNode, name: str) -> None:
    if not MetadataCatalog.get(name).get("thing_classes"):
        DatasetCatalog.get(name)  # COCO's loader sets the names that the file holds
    classes = MetadataCatalog.get(name).thing_classes
    key, number = number_of_classes(cfg)
    if len(classes) != number:
        raise ValueError(f"{key} is {number}, and {name} has {len(classes)} classes: set it to {len(classes)}")


def number_of_classes(cfg: CfgNode) -> tuple[str, int]:
    """Return the key of the setting and its value."""
    head = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    return f"MODEL.{head}.NUM_CLASSES", cfg.MODEL[head].NUM_CLASSES


def training_loader(cfg: CfgNode) -> DataLoader:
    """Return an endless loader of training batches; `loader.batch_sampler.start` is the first iteration."""
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
    return protect(DataLoader(
        Augmented(rows, Mapper(cfg, is_train=True), cfg.SEED), batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=list,
        generator=torch.Generator(),  # else starting and resuming a run would each draw from torch's global one
    ))  # fmt: skip


class Batches(Sampler[list[tuple[int, int]]]):
    """Batches of (position in the order, image index); with `wide` given, all images of a batch are wide or all tall.

    From `start` on, these are the batches of detectron2's AspectRatioGroupedDataset for the same order.
    """

    def __init__(self, order: Sampler[int], size: int, wide: list[bool] | None = None) -> None:
        self.order, self.size, self.wide = order, size, wide
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._all(), self.start, None)

    def _all(self) -> Iterator[list[tuple[int, int]]]:
        buckets: tuple[list[tuple[int, int]], ...] = ([], [])
        for position, image in enumerate(self.order):
            bucket = buckets[self.wide[image] if self.wide else 0]
            bucket.append((position, image))
            if len(bucket) == self.size:
                yield bucket.copy()
                bucket.clear()


class Mapper(DatasetMapper):
    """Names the file of an image that cannot be decoded: the check reads its start and its end alone."""

    def __call__(self, row: Row) -> Row | None:
        """Return what the model takes of an image.

        Raises:
            ValueError: the image is damaged.
        """
        try:
            return cast("Row | None", super().__call__(row))
        except (OSError, SyntaxError) as error:  # of PIL
            raise ValueError(f"{row['file_name']}: damaged ({error}): replace it, or leave it out") from error


class Augmented(Dataset[Row]):
    """Images that the mapper augments, each under the seed (seed, rank, position in the order)."""

    def __init__(self, rows: list[Row], mapper: DatasetMapper, seed: int) -> None:
        self.rows, self.mapper, self.seed = DatasetFromList(rows, copy=False), mapper, seed
        self.rank = comm.get_rank()

    def __getitem__(self, wanted: tuple[int, int]) -> Row:
        position, image = wanted
        # detectron2's augmentations draw from numpy's global generator
        np.random.seed(np.random.SeedSequence((self.seed, self.rank, position)).generate_state(4))
        return self.mapper(self.rows[image])
