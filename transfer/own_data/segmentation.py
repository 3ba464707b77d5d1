"""A user's images with masks of class indices: their pairs, classes and identity, and the task that is made of them."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from PIL import Image

from common.files import listed_names, short_hash, write_text
from common.folders import escaped, some, walk
from common.scan import scan_files
from transfer.headers import read_header
from transfer.own_data.layouts import SPLITS
from transfer.own_data.mmengine_yaml import dump
from transfer.own_data.options import describe_split, epochs_for, file_name, hold_out
from transfer.own_data.overlap import find_overlap
from transfer.tasks import SEGMENTATION

BATCH = 16  # images per iteration of the protocol, 4 on each of 4 devices
VOC_IMAGES, EPOCHS = 10_582, (30, 100)  # of VOC12aug and of its 20k schedule; the most for small data sets
SHORT = (96, 512)  # least and largest short side of a test image and side of a crop, pixels; 512 is VOC's
Steps = list[dict[str, Any]]  # of a pipeline
Pair = tuple[str, str]  # image and mask, relative to their folders


@dataclass(frozen=True)
class SegmentationData:
    """A user's images with masks.

    Attributes:
        name: of the data set, for people.
        folder: of what is made from it: lists of pairs, and the task.
        identity: hash of the content of images and masks, and of the classes.
        images: folder of the images.
        masks: folder of the masks.
        train: pairs that are trained on.
        val: pairs that are tested on.
        classes: names.
        ignore: label of the pixels that count nowhere, beside 255.
        palette: colour of each class, empty where the masks have none.
        short: median short side of the training images, pixels.
        overlap: test images that are training images, in words; "" where there are none.
        notes: what was assumed, in words.
        absent: classes that no test mask shows.
    """

    name: str
    folder: Path
    identity: str
    images: Path
    masks: Path
    train: list[Pair]
    val: list[Pair]
    classes: list[str]
    ignore: int
    palette: list[list[int]]
    short: int
    overlap: str = ""
    notes: list[str] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)


def load(options: Namespace) -> SegmentationData:
    """Find images, masks and classes; every image is read once.

    Raises:
        ValueError: names the file that is wrong and how to mend it; or test images are training images.
    """
    classes = _class_names(options.classes)
    if not 0 <= options.ignore <= 255:
        raise ValueError(f"--ignore {options.ignore}: must be a label, 0 to 255")
    train, val, notes, absent = _pairs(options, classes)
    paths = [[options.images / image for image, _ in pairs] for pairs in (train, val)]
    overlap, hashes = find_overlap(paths[0], paths[1], options.allow_overlap)
    masks = scan_files([options.masks / mask for _, mask in (*train, *val)], content_hash, "masks")
    content = [str(len(train)), str(options.ignore), *classes, *hashes, *masks]
    identity = hashlib.sha256("\0".join(content).encode()).hexdigest()[:12]
    name = file_name(options.data_name, options.images.absolute().parent)
    sizes = scan_files(paths[0], read_header, "training images")
    return SegmentationData(
        name, options.out / "data" / f"{name}-{identity}", identity, options.images.absolute(),
        options.masks.absolute(), train, val, classes, options.ignore,
        _palette(options.masks / train[0][1], raw_labels(len(classes), options.ignore)),
        int(statistics.median(min(size) for size in sizes)), overlap, notes, absent,
    )  # fmt: skip


def content_hash(path: Path) -> str:
    """Return a hash of a file's bytes."""
    return short_hash(path.read_bytes())


def shown_labels(path: Path) -> list[str]:
    """Return the labels in a mask; none where it cannot be read, which the check of the data tells."""
    try:
        with Image.open(path) as mask:
            return np.unique(np.asarray(mask)).astype(str).tolist()
    except (OSError, SyntaxError):  # all that PIL raises for a broken file
        return []


def raw_labels(classes: int, ignore: int) -> list[int]:
    """Return the label of each class in the masks: 0, 1, 2 ..., without the one that is ignored."""
    return [label for label in range(classes + 1) if label != ignore][:classes]


def _class_names(file: Path) -> list[str]:
    if not file.is_file():
        raise ValueError(f"--classes {file}: no such file; write one class name per line, that of label 0 first")
    names = listed_names(file)
    if len(names) < 2:
        raise ValueError(f"{file}: {len(names)} class names: give two or more, one per line, the background's too")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{file}: class {twice!r} is listed twice")
    if len(names) > 255:
        raise ValueError(f"{file}: {len(names)} class names: masks have labels to 254")
    return names


def _pairs(options: Namespace, classes: Sequence[str]) -> tuple[list[Pair], list[Pair], list[str], list[int]]:
    """Return the pairs of train and val, notes, and the classes that a part chosen here leaves without a test mask."""
    found = [_listed(folder, name) for folder, name in ((options.images, "images"), (options.masks, "masks"))]
    images, masks = ({Path(name).with_suffix("").as_posix(): name for name in names} for names in found)
    for names, stems, option in zip(found, (images, masks), ("--images", "--masks"), strict=True):
        if len(stems) < len(names):
            twice = next(name for name in names if stems[Path(name).with_suffix("").as_posix()] != name)
            raise ValueError(f"{options[option[2:]]}/{twice}: two files of this name with other suffixes; remove one")
    for one, other, option, missing in (
        (images, masks, "images", "mask"), (masks, images, "masks", "image"),
    ):  # fmt: skip
        if alone := sorted(one.keys() - other.keys()):
            raise ValueError(
                f"{options[option]}/{one[alone[0]]}: {len(alone)} of {len(one)} {option} have no {missing} of the "
                f"same name below --{'masks' if option == 'images' else 'images'}"
            )
    pairs = [(images[stem], masks[stem]) for stem in sorted(images)]
    parts: dict[str, list[Pair]] = {}
    for split, known in SPLITS.items():
        first = next((name for name in known if any(image.startswith(f"{name}/") for image, _ in pairs)), None)
        parts[split] = [pair for pair in pairs if first and pair[0].startswith(f"{first}/")]
    if parts["train"] and parts["val"]:
        left = len(pairs) - len(parts["train"]) - len(parts["val"])
        return parts["train"], parts["val"], [f"{left} images are in neither part and are not used"] * (left > 0), []
    labels = {str(label) for label in raw_labels(len(classes), options.ignore)}
    shown = scan_files([options.masks / mask for _, mask in pairs], shown_labels, "masks")
    drawn = {image: labels & {*one} for (image, _), one in zip(pairs, shown, strict=True)}
    held = hold_out([*drawn], options.val_fraction, options.split_seed, [*drawn.values()])
    tested = set[str]().union(*(drawn[image] for image in held))
    learned = set[str]().union(*drawn.values())  # all of them, as no class loses its last training image
    absent = [i for i, label in enumerate(raw_labels(len(classes), options.ignore)) if str(label) in learned - tested]
    notes = [describe_split(options.val_fraction, options.split_seed)]
    if absent:
        few = f"{len(absent)} of {len(classes)} classes are in no test mask and have no IoU: "
        notes.append(few + some([classes[i] for i in absent]))
    return [p for p in pairs if p[0] not in held], [p for p in pairs if p[0] in held], notes, absent


def _listed(folder: Path, option: str) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"--{option} {folder}: {folder.absolute()} is no folder")
    names = sorted(walk(folder).images)
    if not names:
        raise ValueError(f"--{option} {folder}: no images in {folder.absolute()}")
    return names


def _palette(mask: Path, labels: Sequence[int]) -> list[list[int]]:
    try:
        with Image.open(mask) as image:
            flat = image.getpalette("RGB") if image.mode == "P" else None
    except OSError:
        return []  # the check says what is wrong with it
    if not flat or len(flat) <= 3 * max(labels) + 2:
        return []
    return [flat[3 * label : 3 * label + 3] for label in labels]


def describe(data: SegmentationData) -> str:
    """Return the data set in words."""
    listed = ", ".join(map(escaped, data.classes[:5])) + ", ..." * (len(data.classes) > 5)
    return (
        f"{data.name}: {len(data.train):,} training and {len(data.val):,} test images, {len(data.classes)} classes "
        f"({listed}), median short side {data.short} px, identity {data.identity}"
    )


def write_task(data: SegmentationData, epochs: float | None) -> tuple[Path, list[str]]:
    """Write the task of a data set as a config of mmseg, and its lists; return its file, and what was chosen.

    Args:
        data: the data set.
        epochs: of the schedule; None: by the number of training images.

    Raises:
        ValueError: `epochs` is not positive.
    """
    count = epochs_for(len(data.train), VOC_IMAGES, EPOCHS, epochs)
    iterations = max(1, round(count * len(data.train) / BATCH))
    side = 8 * round(min(max(data.short, SHORT[0]), SHORT[1]) / 8)
    how = f"30 x sqrt({VOC_IMAGES:,} / images), {EPOCHS[0]} to {EPOCHS[1]}; --epochs changes it"
    said = [
        f"data: {describe(data)}", *(f"note: {note}" for note in data.notes),
        f"schedule: {count:.3g} epochs of {len(data.train):,} images, {iterations:,} iterations of {BATCH} "
        f"({how if epochs is None else '--epochs'})",
        f"input: short side {side} px and crops of {side} x {side}, the images' median within {SHORT[0]} to {SHORT[1]}",
    ]  # fmt: skip
    for split, pairs in (("train", data.train), ("val", data.val)):
        write_text(data.folder / f"{split}.tsv", "".join(f"{image}\t{mask}\n" for image, mask in pairs))
    path = data.folder / f"own-{data.name}-fcn.yaml"  # no name of a task of this project
    head = f"# python transfer/segment.py --ckpt CHECKPOINT --task {path}\n# FCN-D8 on {describe(data)}\n"
    write_text(path, head + dump(_settings(data, iterations, side)))
    return path, said


def _settings(data: SegmentationData, iterations: int, side: int) -> dict[str, Any]:
    scale, square = (4 * side, side), (side, side)
    crop: Steps = [
        {"type": "RandomResize", "scale": scale, "ratio_range": [0.5, 2.0], "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": square, "cat_max_ratio": 0.75},
    ]
    load: Steps = [{"type": "LoadImageFromFile"}]
    pack: Steps = [{"type": "PackSegInputs"}]
    flip: Steps = [{"type": "RandomFlip", "prob": 0.5}, {"type": "PhotoMetricDistortion"}, *pack]
    train = [*load, {"type": "LoadAnnotations"}, *crop, *flip]
    # The prediction is compared at the image's own size.
    val = [*load, {"type": "Resize", "scale": scale, "keep_ratio": True}, {"type": "LoadAnnotations"}, *pack]
    bases = ("runtime", "fcn-d8", "loaders", "sgd")
    classes = len(data.classes)

    def dataset(name: str, pipeline: Steps) -> dict[str, Any]:
        return {"type": "OwnDataset", "identity": data.identity, "ann_file": f"{name}.tsv", "pipeline": pipeline}

    return {
        "_base_": [str(SEGMENTATION.folder / "bases" / f"{name}.yaml") for name in bases],
        "reference_processes": 4,
        **({"absent_classes": data.absent} if data.absent else {}),
        "data_root": data.name,
        "own": {
            "name": data.name, "identity": data.identity, "folder": str(data.folder.absolute()),
            "images": str(data.images), "masks": str(data.masks), "classes": data.classes, "palette": data.palette,
            "ignore": data.ignore, "overlap": data.overlap,
        },
        "model": {
            "data_preprocessor": {"size": [*square]},
            "decode_head": {"num_classes": classes}, "auxiliary_head": {"num_classes": classes},
        },
        "train_dataloader": {"batch_size": 4, "dataset": dataset("train", train)},
        "val_dataloader": {"dataset": dataset("val", val)},
        "test_dataloader": {"dataset": dataset("val", val)},
        "default_hooks": {"checkpoint": {"interval": max(1, iterations // 4)}},
        "param_scheduler": [
            {"type": "PolyLR", "power": 0.9, "eta_min": 1e-4, "begin": 0, "end": iterations, "by_epoch": False}
        ],
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": iterations, "val_interval": max(1, iterations // 4)},
    }  # fmt: skip
