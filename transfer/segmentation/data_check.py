"""The check of the data before the first step: headers of images, sizes and labels of masks, the perfect score."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from common.cli import did_you_mean
from common.scan import Scan, scan_files
from transfer.headers import read_header
from transfer.openmmlab.config import LOADERS
from transfer.openmmlab.quiet import quiet
from transfer.segmentation.data import Part, class_names, count_images, list_parts
from transfer.segmentation.masks import (
    inspect_mask,
    label_table,
    perfect_score,
    read_labels,
    score_mask,
)
from transfer.segmentation.pictures import IGNORED

ANY = "any"  # value of absent_classes
LISTED = 5  # names in an error


@dataclass
class Split:
    """The training or the test images, and what their masks show.

    Attributes:
        title: "training" or "test".
        parts: its data sets.
        ignore: label of the pixels that are not learned, or not scored.
        pixels: label -> number of pixels, (256,).
        opened: number of files that were read now.
    """

    title: str
    parts: Sequence[Part]
    ignore: int
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256))
    opened: int = 0

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return class_names(self.parts)

    def scan(self, paths: Sequence[Path], inspect: Any, what: str) -> Scan:
        """Return the result of every file."""
        results = scan_files(paths, inspect, f"{self.title} {what}")
        self.opened += results.opened
        return results


def check_data(cfg: Config) -> str:
    """Check all images and masks of a task, and that perfect predictions score 100.

    Args:
        cfg: with its data found.

    Returns:
        What was checked, in words.

    Raises:
        ValueError: names the file and the fix.
    """
    train = Split("training", list_parts(cfg, LOADERS[0]), cfg.model.decode_head.get("ignore_index", IGNORED))
    test = Split("test", list_parts(cfg, LOADERS[1]), cfg.val_evaluator.get("ignore_index", IGNORED))
    colours: dict[str, tuple[int, Path]] = {}
    for split in (train, test):
        for part in split.parts:
            _check_files(split, part, colours)
            _try_pipeline(part, scored=split is test)
        _check_classes(split, cfg)
    _check_score(test)
    images = count_images(cfg, train.parts, test.parts)
    unchanged = "" if train.opened + test.opened else ", unchanged since an earlier check"
    return f"{images[0]:,} training and {images[1]:,} test images with their masks{unchanged}"


def _check_files(split: Split, part: Part, colours: dict[str, tuple[int, Path]]) -> None:
    """Read every header and every mask of a data set; add up the pixels of each label.

    Args:
        split: to which it belongs.
        part: the data set.
        colours: colour of a palette -> label and mask where it was first seen; is added to.
    """
    sizes = split.scan(part.images, read_header, "images")
    masks = split.scan(part.masks, inspect_mask, "masks")
    for image, path, size, mask in zip(part.images, part.masks, sizes, masks, strict=True):
        if size != mask["size"]:
            raise ValueError(f"{path}: {_by(mask['size'])} pixels, and its image {image} has {_by(size)}")
        _check_colours(path, mask["colours"], colours)
    reader, entry = _reader(part), part.entry
    table, classes = label_table(reader, entry), len(split.classes)
    known = (table < classes) | (table == split.ignore)
    limit = int(np.argmin(known)) if not known.all() else 256
    wrong = []
    for path, mask in zip(part.masks, masks, strict=True):
        labels = np.array([int(label) for label in mask["pixels"]])
        inside = np.clip(labels, 0, 255)
        right = (labels == inside) & known[inside]
        if not right.all():
            wrong.append((path, labels[~right].tolist()))
        else:
            np.add.at(split.pixels, table[labels], list(mask["pixels"].values()))
    if wrong:
        path, labels = wrong[0]
        more = f" ({len(wrong):,} of {len(masks):,} masks are wrong; this is the first)" * (len(wrong) > 1)
        hint = "; do they count from 1? reduce_zero_label: true ignores 0" * (labels == [classes])
        raise ValueError(f"{path}: labels {labels[:5]} are neither below {limit} nor {IGNORED} (ignored){hint}{more}")
    if not np.array_equal(read_labels(part.masks[0], reader, entry), table[_raw(part.masks[0])]):
        raise ValueError(
            f"{part.masks[0]}: {reader} reads other labels than the file holds; leave imdecode_backend out"
        )


def _check_colours(path: Path, mask: dict[str, str], seen: dict[str, tuple[int, Path]]) -> None:
    """Refuse a palette in which a colour stands for another label than in an earlier mask."""
    if len(set(mask.values())) < len(mask):
        return
    for label, colour in mask.items():
        other, where = seen.setdefault(colour, (int(label), path))
        if other != int(label):
            raise ValueError(
                f"{path}: the colour #{colour} is label {label}, and {other} in {where}: a program has reordered the "
                "palette, and labels are what counts; save all masks with one palette, or without"
            )


def _check_classes(split: Split, cfg: Config) -> None:
    """Refuse masks in which everything is ignored, or a class has no pixel and is not named as absent."""
    classes, pixels = split.classes, split.pixels
    shown = [i for i in range(len(classes)) if pixels[i] and i != split.ignore]
    ignored = f"{100 * pixels[split.ignore] / pixels.sum():.0f} % of the pixels are ignored"
    if not shown:
        what = "scored" if split.title == "test" else "learned"
        raise ValueError(f"{cfg.data_root}: nothing in the {split.title} masks can be {what}: {ignored}")
    allowed = absent_classes(cfg, classes)
    absent = [i for i in range(len(classes)) if i not in shown and i not in allowed]
    if absent:
        named = ", ".join(f"{i} ({classes[i]})" for i in absent[:LISTED]) + ", ..." * (len(absent) > LISTED)
        raise ValueError(
            f"{cfg.data_root}: no {split.title} mask shows {named}, {len(absent)} of {len(classes)} classes, and "
            f"{ignored}: draw a class with its index, never as {split.ignore}; where they are truly absent, add "
            f"--cfg-options absent_classes={_listed(sorted({*absent, *allowed}))}"
        )
    if len(shown) < 2:
        raise ValueError(
            f"{cfg.data_root}: all {split.title} masks show one class only, {classes[shown[0]]}: any figure would be "
            "meaningless"
        )


def absent_classes(cfg: Config, classes: Sequence[str]) -> set[int]:
    """Return the indices of the classes that a task names as absent: a list of names or indices, or "any".

    Raises:
        ValueError: there is no such class.
    """
    named = cfg.get("absent_classes") or []
    if named == ANY:
        return set(range(len(classes)))
    found = set()
    for name in named if isinstance(named, list | tuple) else [named]:
        if name in classes:
            found.add(list(classes).index(name))
        elif isinstance(name, int) and 0 <= name < len(classes):
            found.add(name)
        else:
            hint = did_you_mean(str(name), classes) or f"; a name, an index below {len(classes)}, or {ANY}"
            raise ValueError(f"absent_classes: there is no class {name!r}{hint}")
    return found


def _try_pipeline(part: Part, scored: bool) -> None:
    """Run the pipeline of a data set on its first image.

    Raises:
        ValueError: it fails, or does not give the truth that is scored.
    """
    where, image = f"{part.where}.pipeline", part.images[0]
    try:
        with quiet():
            sample = part.dataset[0]["data_samples"]
        truth, size = sample.gt_sem_seg.shape, tuple(sample.ori_shape)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{where} fails on {image}: {reason}") from error
    if scored and truth != size:
        raise ValueError(
            f"{where}: the truth of {image} has {_by(truth[::-1])} pixels and its prediction {_by(size[::-1])}: put "
            "LoadAnnotations behind Resize"
        )


def _check_score(test: Split) -> None:
    """Score perfect predictions, made from the truth, with the metric of the evaluation.

    Raises:
        ValueError: a class that the masks show does not get 1.0, or one that they do not show gets a figure.
    """
    classes = test.classes
    areas: list[Any] = []
    for part in test.parts:
        score = partial(
            score_mask, reader=_reader(part), entry=part.entry, classes=len(classes), ignore=test.ignore
        )  # fmt: skip
        areas += test.scan(part.masks, score, "masks' perfect scores")
    metrics = perfect_score(areas, classes, test.ignore)
    wanted = {f"IoU/{name}": 1.0 for i, name in enumerate(classes) if test.pixels[i] and i != test.ignore}
    wanted |= dict.fromkeys(("mIoU", "mAcc", "aAcc"), 1.0)
    if metrics != wanted:
        name = next(name for name in {**wanted, **metrics} if metrics.get(name) != wanted.get(name))
        raise ValueError(
            f"{test.parts[0].where}: perfect predictions have {name} {metrics.get(name)}, not {wanted.get(name)}; "
            "are two classes of one name?"
        )


def _reader(part: Part) -> LoadAnnotations:
    """Return a copy of the transform that reads the masks of a data set; mmseg's keeps what it has read first."""
    readers = [step for step in part.dataset.pipeline.transforms if isinstance(step, LoadAnnotations)]
    if len(readers) != 1:
        raise ValueError(
            f"{part.where}.pipeline: needs one LoadAnnotations, which reads the masks; it has {len(readers)}"
        )
    return copy.deepcopy(readers[0])


def _raw(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _listed(indices: Sequence[int]) -> str:
    return f"[{','.join(map(str, indices))}]"
