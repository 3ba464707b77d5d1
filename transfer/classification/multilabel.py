"""Images that may show several classes at once: PASCAL VOC 2007, and any images with one label each.

Shapes: N images, C classes. Targets are 1 (present), 0 (absent) or -1 (difficult: neither).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jsonargparse import Namespace

from common.images import UNLABELLED, ImageSet, decode, text_lines
from common.labels import LabelConfig
from transfer.classification.data import load_class_data

PRESENT, ABSENT, DIFFICULT = 1, 0, -1
VOC = "voc07:"


@dataclass(frozen=True)
class MultiLabel:
    """Images to train on and to test on.

    Args:
        train: N of them.
        test: M of them.
        targets: (N, C) int64.
        test_targets: (M, C) int64.
        classes: class names.
    """

    train: ImageSet
    test: ImageSet
    targets: np.ndarray
    test_targets: np.ndarray
    classes: list[str]


def voc_sources(data: str | list[str]) -> tuple[str, str] | None:
    """Names of VOC07's trainval and test, where --data is voc07:FOLDER; else None."""
    if isinstance(data, str) and data.startswith(VOC):
        return f"{data} trainval", f"{data} test"
    return None


def load_multilabel(options: Namespace) -> MultiLabel:
    """Reads VOC07's trainval and test, or takes labels one by one as present and absent.

    Raises:
        ValueError: a folder that is not VOC 2007's, or what `load_class_data` complains of.
    """
    if voc_sources(options.data) is not None:
        if LabelConfig(**options.labels.as_dict()) != LabelConfig():
            raise ValueError("--labels: VOC07 is used with all its labels")
        root = Path(options.data.removeprefix(VOC))
        classes = voc_classes(root)
        train, targets = read_voc(root, "trainval", classes)
        test, test_targets = read_voc(root, "test", classes)
        return MultiLabel(train, test, targets, test_targets, classes)
    data = load_class_data(options)
    numbers = np.arange(len(data.classes))
    targets, test_targets = ((images.labels[:, None] == numbers).astype(np.int64) for images in (data.train, data.test))
    return MultiLabel(data.train, data.test, targets, test_targets, data.classes)


def voc_classes(root: Path) -> list[str]:
    """Names of the classes that have a list in ImageSets/Main.

    Raises:
        ValueError: there is none.
    """
    lists = root / "ImageSets" / "Main"
    names = sorted(path.name.removesuffix("_trainval.txt") for path in lists.glob("*_trainval.txt"))
    if not names:
        raise ValueError(f"{VOC}{root}: no {lists}/*_trainval.txt; name VOCdevkit's VOC2007 folder")
    return names


def read_voc(root: Path, split: str, classes: list[str]) -> tuple[ImageSet, np.ndarray]:
    """Images and targets (N, C) of a split, from ImageSets/Main/CLASS_SPLIT.txt: a line is `NAME 1`, `0` or `-1`.

    In VOC's files 1 is present, 0 difficult, -1 absent.

    Raises:
        ValueError: a list is missing, differs from the others in its images, or has another line.
    """
    meaning = {"1": PRESENT, "0": DIFFICULT, "-1": ABSENT}
    columns: list[list[int]] = []
    names: list[str] = []
    for name in classes:
        path = root / "ImageSets" / "Main" / f"{name}_{split}.txt"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; {split} of VOC 2007 is not complete")
        rows = [line.split() for line in text_lines(path) if line.strip()]
        bad = next((row for row in rows if len(row) != 2 or row[1] not in meaning), None)
        if bad is not None:
            raise ValueError(f"{path}: line {' '.join(bad)!r}: must be a name and 1, 0 or -1")
        if names and names != [row[0] for row in rows]:
            raise ValueError(f"{path}: lists other images than {classes[0]}_{split}.txt")
        names = [row[0] for row in rows]
        columns.append([meaning[row[1]] for row in rows])
    paths: list[Path | None] = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    nobody = np.full(len(names), UNLABELLED, dtype=np.int64)
    images = ImageSet(names, nobody, classes, lambda i: decode(_given(paths[i])), paths)
    return images, np.array(columns, dtype=np.int64).T


def _given(path: Path | None) -> Path:
    assert path is not None
    return path


def average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve, made monotone as VOC does from 2010 on and the papers' code does.

    Args:
        targets: (n,) PRESENT or ABSENT, at least one PRESENT.
        scores: (n,), higher for present.
    """
    order = np.argsort(-scores, kind="stable")
    hits = targets[order] == PRESENT
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from_here[hits].mean())


def low_shot_sample(targets: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Targets (N, C) of which only k positives and (C - 1) k negatives of each class are left, drawn at random.

    As facebookresearch/fair_self_supervision_benchmark@275d104 draws them (create_voc_low_shot_samples.py).

    Raises:
        ValueError: a class has fewer.
    """
    sample = np.full_like(targets, DIFFICULT)
    classes = targets.shape[1]
    for c in range(classes):
        for symbol, number, what in ((PRESENT, k, "positives"), (ABSENT, (classes - 1) * k, "negatives")):
            places = np.flatnonzero(targets[:, c] == symbol)
            if len(places) < number:
                raise ValueError(f"k={k}: class number {c} has {len(places)} {what}, {number} are needed; lower --k")
            sample[rng.choice(places, number, replace=False), c] = symbol
    return sample
