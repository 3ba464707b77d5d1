"""Options that name a user's data set for detection or segmentation, and what they mean."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace

FILES = ("train_json", "train_images", "val_json", "val_images")


def add_detection(p: ArgumentParser) -> None:
    """Add the options that name a data set of one's own."""
    p.add_argument("--data", type=Path, help="folder of your own data set, in COCO's, YOLO's or VOC's layout")
    for split, what in (("train", "training"), ("val", "test")):
        p.add_argument(f"--{split}-json", type=Path, help=f"in place of --data: {what} annotations in COCO's format")
        p.add_argument(f"--{split}-images", type=Path, help=f"folder of the {what} images")
    _add_common(p, "for YOLO's and VOC's layouts")


def names_detection(options: Namespace) -> bool:
    """Return whether the options name a data set of one's own.

    Raises:
        ValueError: they name it twice or in part.
    """
    given = [name for name in FILES if options[name] is not None]
    if given and options.data is not None:
        raise ValueError(f"--data and --{given[0].replace('_', '-')}: give the folder or the four files and folders")
    if given and len(given) < len(FILES):
        missing = [f"--{name.replace('_', '-')}" for name in FILES if name not in given]
        raise ValueError(f"{', '.join(missing)} missing: train and val each need their annotations and images")
    return bool(given) or options.data is not None


def add_segmentation(p: ArgumentParser) -> None:
    """Add the options that name images and masks of one's own."""
    p.add_argument("--images", type=Path, help="your own data: folder of images, with train/ and val/ or without")
    p.add_argument("--masks", type=Path, help="folder of their masks: PNG with class indices, also with a palette")
    p.add_argument("--ignore", type=int, default=255, help="label of the pixels that count nowhere, beside 255")
    _add_common(p, "for your own data; the first is that of label 0")
    p.add_argument("--epochs", type=float, help="schedule for your own data; default: by its number of images")


def names_segmentation(options: Namespace) -> bool:
    """Return whether the options name images and masks of one's own.

    Raises:
        ValueError: they name them in part.
    """
    names = ("images", "masks", "classes")
    missing = [f"--{name}" for name in names if options[name] is None]
    if 0 < len(missing) < len(names):
        raise ValueError(f"{', '.join(missing)} missing: your own data needs --images, --masks and --classes")
    return not missing


def _add_common(p: ArgumentParser, classes: str) -> None:
    """Add what all kinds of data sets have; `classes` says what --classes is for."""
    p.add_argument("--classes", type=Path, help=f"file with one class name per line, {classes}")
    p.add_argument("--data-name", help="of your data set in records and tables; default: that of its folder")
    p.add_argument("--val-fraction", type=float, default=0.2, help="tested on, where your data set has one part only")
    p.add_argument("--split-seed", type=int, default=0, help="of the choice of these images")
    p.add_argument("--allow-overlap", action="store_true", help="accept test images that are training images")


def file_name(given: str | None, folder: Path) -> str:
    """Return the name of a data set as part of a file name: as given, or that of its folder."""
    return re.sub(r"[^\w.=-]+", "-", given or folder.absolute().name or "data")


def hold_out(names: Sequence[str], fraction: float, seed: int, shown: Sequence[set[str]] | None = None) -> set[str]:
    """Return the names that are tested on, chosen at random.

    No class loses its last training image, and as many classes are tested on as the number of test images allows, the
    rarest first: a purely random fifth of 30 images often has neither.

    Args:
        names: N of them, in an order that does not depend on where they are.
        fraction: of them.
        seed: of the choice.
        shown: the classes on each of the N images, where they count.

    Raises:
        ValueError: one part would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"--val-fraction {fraction}: must be between 0 and 1")
    count = round(fraction * len(names))
    if not 0 < count < len(names):
        raise ValueError(f"--val-fraction {fraction}: of {len(names)} images, {count} would be tested on")
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    if shown is None:
        return {names[i] for i in order[:count]}
    left = Counter(c for classes in shown for c in classes)  # training images of each class
    tested, seen = set[int](), set[str]()

    def take(candidates: Iterable[int], most: int) -> None:
        for i in candidates:
            if most > 0 and i not in tested and all(left[c] > 1 for c in shown[i]):
                tested.add(i)
                seen.update(shown[i])
                left.subtract(shown[i])
                most -= 1

    for rare in sorted(left, key=lambda c: (left[c], c)):
        if rare not in seen:
            take((i for i in order if rare in shown[i]), min(1, count - len(tested)))
    take(order, count - len(tested))
    if len(tested) < count:
        raise ValueError(
            f"--val-fraction {fraction}: with {count} of {len(names)} images tested on, a class would have no training "
            "image: give a smaller part, or more images"
        )
    return {names[i] for i in tested}


def epochs_for(images: int, reference: int, epochs: tuple[float, float], given: float | None) -> float:
    """Return the epochs of a schedule: those given, else by the size of the data set.

    Args:
        images: that are trained on.
        reference: images of the protocol's own data set.
        epochs: of its schedule, for as many images or more; and the most, for small data sets.
        given: --epochs.

    Raises:
        ValueError: --epochs is not positive.
    """
    if given is not None and not 0 < given < math.inf:
        raise ValueError(f"--epochs {given:g}: must be above 0")
    least, most = epochs
    return min(most, max(least, least * math.sqrt(reference / max(images, 1)))) if given is None else given


def describe_split(fraction: float, seed: int) -> str:
    """Return what `hold_out` did, in words."""
    return (
        f"the data set has one part: {fraction:.0%} of its images are tested on, chosen with seed {seed} "
        "(--val-fraction, --split-seed)"
    )
