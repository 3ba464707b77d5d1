"""Images to train on and to test on, one class map for both."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace

from common.images import UNLABELLED, ImageSet, load_images
from common.labels import LabelConfig, choose_balanced, keep_labels
from common.loaders import Batch, TwoViews

HELD_OUT = 0.1  # share of train that options are chosen on


@dataclass(frozen=True)
class ClassData:
    """Labelled images of one class map.

    Args:
        train: images that heads learn from, and that vote in kNN.
        test: images that are reported on.
        train_name: their sources, as a record names them.
        test_name: the test source.
    """

    train: ImageSet
    test: ImageSet
    train_name: str
    test_name: str

    @property
    def classes(self) -> list[str]:
        """Class names; label i is classes[i]."""
        return self.train.classes

    @property
    def same(self) -> bool:
        """Whether the test images are the training images."""
        return self.test is self.train


def sources(data: str | list[str], test: str | None) -> tuple[list[str], str]:
    """Training sources and test source that --data and --test name.

    Raises:
        ValueError: --test is missing and --data does not imply it.
    """
    train = [data] if isinstance(data, str) else list(data)
    test = "fashion:test" if test == "fashion" else test
    if train in (["fashion"], ["fashion:train"]):
        train, test = ["fashion:train"], test or "fashion:test"
    elif len(train) == 1 and (Path(train[0]) / "train").is_dir():
        found = [name for name in ("val", "test") if (Path(train[0]) / name).is_dir()]
        if test or found:
            train, test = [f"{train[0]}/train"], test or f"{train[0]}/{found[0]}"
    if test is None:
        raise ValueError(
            f"--test is missing: {', '.join(train)} has no val/ or test/ beside a train/ that would imply it"
        )
    same = len(train) == 1 and os.path.realpath(test) == os.path.realpath(train[0])
    return train, train[0] if same else test


def source_names(options: Namespace) -> tuple[str, str]:
    """What records call the training and the test images."""
    train, test = sources(options.data, options.test)
    return " + ".join(train), test


def load_class_data(options: Namespace, leave_one_out: bool = False) -> ClassData:
    """Reads the lists of images that the options name; training images without a label are left out.

    Args:
        options: of the command.
        leave_one_out: whether the test images may be the training images.

    Raises:
        ValueError: sources that cannot be read, no labels, a class without training images, a test image without a
            label or of a class that is not in the class map; test images that are training images.
    """
    train_sources, test_source = sources(options.data, options.test)
    train_name, test_name = source_names(options)
    everything = load_images(train_sources, options.root, options.classes)
    empty_folders = [f for source in train_sources for f in _class_folders(source) if f.name not in everything.classes]
    if empty_folders:
        raise ValueError(f"{empty_folders[0]}: a class folder without images; fill it or remove it")
    kept = keep_labels(everything, LabelConfig(**options.labels.as_dict())).labels
    labelled = np.flatnonzero(kept != UNLABELLED)
    if not len(labelled):
        raise ValueError(f"none of the {len(everything)} training images of {train_name} has a label")
    train = everything.subset(labelled)
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if not counts.all():
        empty = [train.classes[c] for c in np.flatnonzero(counts == 0)]
        raise ValueError(f"{train_name}: no labelled training image of class {', '.join(map(repr, empty[:5]))}")
    test = everything if test_name == train_name else _test_images(test_source, options, train.classes)
    if not _same_images(everything, train, test, test_name):
        return ClassData(train, test, train_name, test_name)
    if not leave_one_out:
        raise ValueError(
            f"--test {test_name}: these are the training images; give others (only transfer/knn.py leaves one out)"
        )
    return ClassData(train, train, train_name, test_name)


def _class_folders(source: str) -> list[Path]:
    """The folders that a training source's classes may lie in, without hidden ones."""
    path = Path(source.removeprefix("folders:"))
    return sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")) if path.is_dir() else []


def _same_images(everything: ImageSet, train: ImageSet, test: ImageSet, test_name: str) -> bool:
    """Whether all the test images are the training images, with their labels or before some were dropped.

    Raises:
        ValueError: some of them are.
    """
    if test is everything:
        return True
    tested, learnt = _identities(test), _identities(train)
    if tested == learnt or (len(everything) > len(train) and tested == _identities(everything)):
        return True
    shared = len(tested & learnt)
    if shared:
        raise ValueError(
            f"--test {test_name}: {shared} of its {len(test)} images are training images; give images of which none is"
        )
    return False


def _identities(images: ImageSet) -> set[str]:
    """What tells images apart: files without links, or names where they are in memory."""
    folders: dict[Path, str] = {}  # a million images lie in a thousand folders
    found = set()
    for name, path in zip(images.names, images.paths or [None] * len(images), strict=True):
        if path is None:
            found.add(name)
        elif path.is_symlink():
            found.add(os.path.realpath(path))
        else:
            if path.parent not in folders:
                folders[path.parent] = os.path.realpath(path.parent)
            found.add(f"{folders[path.parent]}/{path.name}")
    return found


def _test_images(source: str, options: Namespace, classes: list[str]) -> ImageSet:
    """The test images, with the labels of the training images' class map."""
    images = load_images([source], options.root, options.classes)
    unlabelled = int((images.labels == UNLABELLED).sum())
    if unlabelled:
        raise ValueError(f"{source}: {unlabelled} of {len(images)} test images have no label")
    unknown = [name for name in images.classes if name not in classes]
    if unknown:
        raise ValueError(
            f"{source}: class {', '.join(map(repr, unknown[:5]))} is none of the {len(classes)} classes of the "
            "training images: the two have different classes"
        )
    places = np.array([classes.index(name) for name in images.classes], dtype=np.int64)
    return replace(images, labels=places[images.labels], classes=classes)


def hold_out(labels: np.ndarray, seed: int, share: float = HELD_OUT) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training images to fit on and of those, class-balanced, to choose options on.

    Raises:
        ValueError: too few images: one part would be empty, or a class would have no image to fit on.
    """
    held = choose_balanced(labels, share, seed)
    fit = np.setdiff1d(np.arange(len(labels)), held)
    if not len(held) or len(np.unique(labels[fit])) < len(np.unique(labels)):
        raise ValueError(
            f"{len(labels)} training images are too few to hold out {share:.0%} of them for choosing options; "
            "give one value in place of each list"
        )
    return fit, held


class OneView(TwoViews):
    """One random view of each image, a function of (seed, epoch, image); of a batch, `k` is `q`."""

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """A whole batch."""
        size = self.make_view.config.size
        views = np.empty((len(keys), size, size, 3), np.uint8)
        index = np.empty(len(keys), np.int64)
        corrupt: dict[int, str] = {}
        for row, (epoch, number) in enumerate(keys):
            rng = np.random.default_rng((self.seed, epoch, number))
            image, index[row] = self._read(number, rng, corrupt)
            views[row] = self.make_view(image, rng)
        q = torch.from_numpy(views)
        return Batch(q, q, torch.from_numpy(self.labels[index]), torch.from_numpy(index), corrupt)
