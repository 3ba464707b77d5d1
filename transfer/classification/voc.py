"""Images with several labels: PASCAL VOC 2007, and any images with one label each as one against the rest.

Shapes: N images, C classes. Targets are 1 (present), 0 (absent) or -1 (difficult: neither).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jsonargparse import Namespace

from common.files import text_lines
from common.folders import some
from common.images import UNLABELLED, ImageSet, decode
from common.labels import LabelConfig
from transfer.classification.data import VOC, is_voc, load_class_data, source_names
from transfer.own_data import multilabel

PRESENT, ABSENT, DIFFICULT = 1, 0, -1


@dataclass(frozen=True)
class MultiLabel:
    """Training and test images with their targets.

    Args:
        train: N images.
        test: M images.
        targets: (N, C) int64.
        test_targets: (M, C) int64.
        classes: class names.
    """

    train: ImageSet
    test: ImageSet
    targets: np.ndarray
    test_targets: np.ndarray
    classes: list[str]


def load_multilabel(options: Namespace) -> MultiLabel:
    """Read VOC07's trainval and test, or turn the labels of other images into one target per class.

    Raises:
        ValueError: the folder is not VOC 2007's, or see `load_class_data`.
    """
    if is_voc(options.data):
        if LabelConfig(**options.labels.as_dict()) != LabelConfig():
            raise ValueError("--labels: VOC07 is used with all its labels")
        root = Path(options.data.removeprefix(VOC))
        classes = voc_classes(root)
        train, targets = read_voc(root, "trainval", classes)
        test, test_targets = read_voc(root, "test", classes)
        if both := set(train.names) & set(test.names):
            raise ValueError(f"{options.data}: {len(both)} images are in trainval and in test: {some(sorted(both))}")
        return MultiLabel(train, test, targets, test_targets, classes)
    if multilabel.is_table(options.data):
        if LabelConfig(**options.labels.as_dict()) != LabelConfig():
            raise ValueError("--labels: images with several labels are used with all of them")
        source_names(options)  # refuses --data without test images
        (train, targets), (test, test_targets), classes = multilabel.load(options)
        return MultiLabel(train, test, targets, test_targets, classes)
    data = load_class_data(options, accuracy=False)
    index = np.arange(len(data.classes))
    targets, test_targets = ((images.labels[:, None] == index).astype(np.int64) for images in (data.train, data.test))
    return MultiLabel(data.train, data.test, targets, test_targets, data.classes)


def voc_classes(root: Path) -> list[str]:
    """Return the names of the classes that have a list in ImageSets/Main, sorted.

    Raises:
        ValueError: there is none.
    """
    lists = root / "ImageSets" / "Main"
    names = sorted(path.name.removesuffix("_trainval.txt") for path in lists.glob("*_trainval.txt"))
    if not names:
        raise ValueError(f"{VOC}{root}: no {lists}/*_trainval.txt; name VOCdevkit's VOC2007 folder")
    return names


def read_voc(root: Path, split: str, classes: list[str]) -> tuple[ImageSet, np.ndarray]:
    """Read the images and targets (N, C) of a split from ImageSets/Main/CLASS_SPLIT.txt, lines `NAME 1`, `0` or `-1`.

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
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: {next(n for n in names if names.count(n) > 1)} is listed twice")
        columns.append([meaning[row[1]] for row in rows])
    paths = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    no_label = np.full(len(names), UNLABELLED, dtype=np.int64)
    images = ImageSet(names, no_label, classes, lambda i: decode(paths[i]), [*paths])
    return images, np.array(columns, dtype=np.int64).T


def average_precision(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the monotone precision-recall curve, as in VOC from 2010 on and in the papers' code.

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
    """Draw k positives and (C - 1) k negatives of each class; all other targets (N, C) become DIFFICULT.

    Drawn as in facebookresearch/fair_self_supervision_benchmark@275d104, create_voc_low_shot_samples.py.

    Raises:
        ValueError: a class has fewer.
    """
    sample = np.full_like(targets, DIFFICULT)
    classes = targets.shape[1]
    for c in range(classes):
        for symbol, count, what in ((PRESENT, k, "positives"), (ABSENT, (classes - 1) * k, "negatives")):
            rows = np.flatnonzero(targets[:, c] == symbol)
            if len(rows) < count:
                raise ValueError(f"k={k}: class {c} has {len(rows)} {what}, {count} are needed; lower --k")
            sample[rng.choice(rows, count, replace=False), c] = symbol
    return sample
