"""The check of all images before the first run: each can be read, and copies do not contradict each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from common.folders import some, tell
from common.image_check import check_images
from common.images import UNLABELLED, CorruptImageError, ImageSet
from transfer.classification.data import ClassData
from transfer.classification.voc import MultiLabel

CONTRADICTIONS = 0.01  # fraction of images whose copies have other labels; ImageNet has a few


def check_sets(data: ClassData | MultiLabel) -> str:
    """Look at every training and test image; return what they are, in words.

    Raises:
        CorruptImageError: an image cannot be read.
        ValueError: too many images are copies of images of another class, or all test images of training images.
    """
    same = data.test is data.train
    train = _hashes(data.train, "training images")
    test = train if same else _hashes(data.test, "test images")
    for images, hashes, title in ((data.train, train, "training images"), (data.test, test, "test images"))[: 2 - same]:
        _check_contradictions(images, hashes, title)
    if not same:
        seen = set(train) - {""}
        copies = [name for name, key in zip(data.test.names, test, strict=True) if key in seen]
        text = f"{len(copies)} of {len(test)} test images are copies of training images ({some(copies)})"
        if len(copies) == len(test):
            raise ValueError(f"{text}: metrics would be of what was learnt by heart")
        if copies:
            tell(f"warning: {text}")
    return f"train {data.train.describe()}; test {'the same, one left out' if same else data.test.describe()}"


def _hashes(images: ImageSet, title: str) -> Sequence[str]:
    checked = check_images(images, title)
    if checked.wrong:
        more = f" ({len(checked.wrong)} of {len(images)} {title} cannot be read; this is the first)"
        raise CorruptImageError(next(iter(checked.wrong.values())) + more * (len(checked.wrong) > 1))
    return checked.hashes


def _check_contradictions(images: ImageSet, hashes: Iterable[str], title: str) -> None:
    """Tell copies of an image that have different labels; raise a ValueError where there are many."""
    same: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(hashes):
        if key and images.labels[i] != UNLABELLED:
            same[key].append(i)
    found = [i for copies in same.values() if len(set(images.labels[copies])) > 1 for i in copies]
    if not found:
        return
    classes = np.array(images.classes)[images.labels[found[:2]]]
    text = (
        f"{len(found)} of {len(images)} {title} are copies of images with another label, e.g. {images.names[found[0]]} "
        f"({classes[0]}) and {images.names[found[1]]} ({classes[1]})"
    )
    if len(found) > CONTRADICTIONS * len(images):
        raise ValueError(f"{text}: no prediction can be right for both; give each image one label")
    tell(f"warning: {text}")
