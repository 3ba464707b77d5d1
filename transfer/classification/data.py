"""Training and test images with one class map."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jsonargparse import Namespace

from common.folders import escaped, some, tell
from common.images import UNLABELLED, ImageSet, load_images, source_list, source_path
from common.labels import LabelConfig, choose_balanced, keep_labels

HELD_OUT = 0.1  # fraction of train on which hyper-parameters are chosen
VOC = "voc07:"  # --data voc07:FOLDER; see voc.py


@dataclass(frozen=True)
class ClassData:
    """Labelled images of one class map.

    Args:
        train: images that heads are trained on; the bank of kNN.
        test: images that metrics are computed on.
        train_name: sources of the training images, as a record names them.
        test_name: source of the test images.
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


def is_voc(data: str | list[str] | None) -> bool:
    """Return whether --data is voc07:FOLDER."""
    return isinstance(data, str) and data.startswith(VOC)


def sources(data: str | list[str], test: str | None) -> tuple[list[str], str]:
    """Return the training sources and the test source that --data and --test name.

    Raises:
        ValueError: --test is missing and --data does not imply it.
    """
    train = source_list(data)
    test = "fashion:test" if test == "fashion" else test
    if train in (["fashion"], ["fashion:train"]):
        train, test = ["fashion:train"], test or "fashion:test"
    elif len(train) == 1 and (Path(train[0]) / "train").is_dir():
        found = [name for name in ("val", "test") if (Path(train[0]) / name).is_dir()]
        if test or found:
            train, test = [f"{train[0]}/train"], test or f"{train[0]}/{found[0]}"
    if test is None:
        for source in train:
            path = source_path(source)
            if not source.startswith("fashion:") and not path.exists():
                raise ValueError(f"--data {source}: {path.absolute()}: no such file or folder (and --test is missing)")
        raise ValueError(
            f"--test is missing: {', '.join(train)} has no val/ or test/ beside a train/ that would imply it; "
            "--val-fraction 0.2 tests on a part of it"
        )
    same = len(train) == 1 and os.path.realpath(test) == os.path.realpath(train[0])
    return train, train[0] if same else test


def source_names(options: Namespace) -> tuple[str, str]:
    """Return the names of the training and the test images in records."""
    if is_voc(options.data):
        return escaped(f"{options.data} trainval"), escaped(f"{options.data} test")
    if options.val_fraction is not None:
        name = escaped(" + ".join(source_list(options.data)))
        if options.test is not None:
            raise ValueError(f"--test {options.test} and --val-fraction {options.val_fraction:g}: give one of them")
        if not 0 < options.val_fraction < 1:
            raise ValueError(f"--val-fraction {options.val_fraction:g}: must be between 0 and 1")
        part = f"{options.val_fraction:g}", f"(seed {options.split_seed})"
        return f"{name} but {' '.join(part)}", f"{part[0]} of {name} {part[1]}"
    train, test = sources(options.data, options.test)
    return escaped(" + ".join(train)), escaped(test)


def load_class_data(options: Namespace, leave_one_out: bool = False, accuracy: bool = True) -> ClassData:
    """Read the lists of images that the options name; training images without a label are left out.

    Args:
        options: of the command.
        leave_one_out: whether the test images may be the training images.
        accuracy: whether accuracy is measured, which says nothing of test images of one class.

    Raises:
        ValueError: a source cannot be read or has no labels; a class has no training image; a test image has no label
            or one that is not in the class map; test images are training images; metrics would mean nothing.
    """
    train_name, test_name = source_names(options)
    everything, held_out, test_source = _read_sources(options)
    kept = keep_labels(everything, LabelConfig(**options.labels.as_dict())).labels
    labelled = np.flatnonzero(kept != UNLABELLED)
    if not len(labelled):
        raise ValueError(f"none of the {len(everything)} training images of {train_name} has a label")
    train = everything.subset(labelled)
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if not counts.all():
        empty = [train.classes[c] for c in np.flatnonzero(counts == 0)]
        raise ValueError(f"{train_name}: no labelled training image of class {', '.join(map(repr, empty[:5]))}")
    if held_out is not None:
        test = held_out
    else:
        test = everything if test_name == train_name else _test_images(test_source, options, train.classes)
    trained = _identities(train)
    tested = trained if test is everything else _identities(test)
    if test is not everything and not _same_images(everything, trained, tested, test_name):
        data = ClassData(train, test, train_name, test_name)
    elif leave_one_out:
        data, tested = ClassData(train, train, train_name, test_name), trained
    else:
        raise ValueError(
            f"--test {test_name}: these are the training images; give others (only transfer/knn.py leaves one out)"
        )
    _refuse_contradictions(train, trained, train_name)
    _refuse_contradictions(data.test, tested, test_name)
    _refuse_without_meaning(data, len(train) - len(set(trained)), accuracy)
    return data


def _read_sources(options: Namespace) -> tuple[ImageSet, ImageSet | None, str]:
    """Return the training images, the test images where --val-fraction holds them out, and else their source."""
    if options.val_fraction is None:
        train, test = sources(options.data, options.test)
        return load_images(train, options.root, options.classes, complete=True), None, test
    train = ["fashion:train" if source == "fashion" else source for source in source_list(options.data)]
    images = load_images(train, options.root, options.classes, complete=True)
    held = choose_balanced(images.labels, options.val_fraction, options.split_seed)
    if not 0 < len(held) < len(images):
        raise ValueError(
            f"--val-fraction {options.val_fraction:g}: of {len(images)} images, {len(held)} would be tested on"
        )
    return images.subset(np.setdiff1d(np.arange(len(images)), held)), images.subset(held), ""


def _refuse_contradictions(images: ImageSet, identities: list[str], name: str) -> None:
    """Raise a ValueError where one file has two labels."""
    labels: dict[str, int] = {}
    for identity, image, label in zip(identities, images.names, images.labels.tolist(), strict=True):
        if labels.setdefault(identity, label) != label:
            both = f"{images.classes[labels[identity]]!r} and {images.classes[label]!r}"
            raise ValueError(f"{name}: {image} is listed as {both}: an image has one label")


def _refuse_without_meaning(data: ClassData, repeated: int, accuracy: bool) -> None:
    """Raise a ValueError where metrics would say nothing about the features; tell what lessens their meaning.

    `repeated` of the training images are listed before.
    """
    train, test, classes = data.train_name, data.test_name, data.classes
    if len(classes) == 1:
        raise ValueError(f"{train}: one class, {classes[0]!r}: every prediction would be right; give two or more")
    shown, (alone,) = np.unique(data.test.labels), np.nonzero(np.bincount(data.train.labels) == 1)
    if accuracy and len(shown) == 1:
        raise ValueError(f"{test}: all images show {classes[shown[0]]!r}: always to answer that would give 100 %")
    if len(shown) < len(classes):
        tell(f"{test}: the test images show {len(shown)} of the {len(classes)} classes")
    if not data.same:
        return
    if repeated:
        raise ValueError(f"{train}: {repeated} images are listed twice: with one left out, its copy is its neighbour")
    if len(alone) == len(classes):
        raise ValueError(f"{train}: one image per class: with it left out, no neighbour can have its class")
    if len(alone):
        names = some([classes[c] for c in alone])
        tell(f"{train}: {len(alone)} classes have one image, so with it left out none can be right: {names}")


def _same_images(everything: ImageSet, trained: list[str], tested: list[str], test_name: str) -> bool:
    """Return whether the test images are exactly the training images, all of them or those that keep a label.

    Raises:
        ValueError: only some of them are.
    """
    train, test = set(trained), set(tested)
    if test == train or (len(everything) > len(trained) and test == set(_identities(everything))):
        return True
    if shared := len(test & train):
        raise ValueError(f"--test {test_name}: {shared} of its {len(tested)} images are training images; give others")
    return False


def _identities(images: ImageSet) -> list[str]:
    """Return what identifies each image: its resolved file, or its name where it is in memory."""
    folders: dict[Path, str] = {}  # resolved once each: a million images lie in a thousand folders
    found = []
    for name, path in zip(images.names, images.paths or [None] * len(images), strict=True):
        if path is None:
            found.append(name)
        elif path.is_symlink():
            found.append(os.path.realpath(path))
        else:
            if path.parent not in folders:
                folders[path.parent] = os.path.realpath(path.parent)
            found.append(f"{folders[path.parent]}/{path.name}")
    return found


def _test_images(source: str, options: Namespace, classes: list[str]) -> ImageSet:
    """Read the test images, with labels of the training images' class map."""
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
    index = np.array([classes.index(name) for name in images.classes], dtype=np.int64)
    return replace(images, labels=index[images.labels], classes=classes)


def hold_out(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training images to fit on, and of a class-balanced tenth to choose options on.

    Raises:
        ValueError: too few images: one part would be empty, or a class would have no image to fit on.
    """
    held = choose_balanced(labels, HELD_OUT, seed)
    fit = np.setdiff1d(np.arange(len(labels)), held)
    if not len(held) or len(np.unique(labels[fit])) < len(np.unique(labels)):
        raise ValueError(
            f"{len(labels)} training images are too few to hold out {HELD_OUT:.0%} of them for choosing options; "
            "give one value in place of each list, as --penalties [0.001] of linear"
        )
    return fit, held
