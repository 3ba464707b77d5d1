"""Data sets of the detection tasks: find or make them below --data-root, and check that they are complete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from common.extras import require
from common.files import write_text
from transfer.layouts import require_data
from transfer.scenes import ensure_scenes

FIT = 0.875  # fraction of the training scenes in fashion_scenes_fit; the rest is fashion_scenes_held
OWN_SPLITS = "own_coco_train", "own_coco_val"  # with "coco", detectron2 does not warn of category ids with gaps
CITYSCAPES = "pip install --no-deps cityscapesscripts==2.3.0 shapely==2.2.0 pyquaternion==0.9.9"


def find_data(data: str, scenes: Sequence[int], root: Path) -> Path:
    """Return the folder of a task's data set after checking that it is complete; Fashion Scenes are made if missing.

    Args:
        data: TASK.DATA, "fashion" or a key of LAYOUTS.
        scenes: TASK.SCENES, the arguments of `ensure_scenes`.
        root: --data-root.

    Raises:
        ValueError: names what is missing and where to get it.
    """
    if data == "fashion":
        return ensure_scenes(root, *scenes)
    if data == "cityscapes":
        for package in ("cityscapesscripts", "shapely", "pyquaternion"):
            require(package, CITYSCAPES)
    require_data(data, root)
    return root


def scene_splits(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return annotation file and image folder of each split of Fashion Scenes, under its data set's name.

    fashion_scenes_fit and fashion_scenes_held are two parts of train, for choosing settings.
    """
    files = {split: folder / "annotations" / f"instances_{split}.json" for split in ("train", "val")}
    files["fit"] = _write_part(files["train"], "fit", 0, FIT)
    files["held"] = _write_part(files["train"], "held", FIT, 1)
    images = {name: folder / "images" / ("val" if name == "val" else "train") for name in files}
    return {f"fashion_scenes_{name}": (file, images[name]) for name, file in files.items()}


def own_splits(files: Sequence[str]) -> dict[str, tuple[Path, Path]]:
    """Return annotation file and image folder of each split of a user's data set, from TASK.FILES."""
    train, train_images, val, val_images = map(Path, files)
    return dict(zip(OWN_SPLITS, ((train, train_images), (val, val_images)), strict=True))


def describe_checks(train: Sequence[tuple[str, list[str]]], test: Sequence[tuple[str, list[str]]]) -> str:
    """Return what the checks of data sets have found, in words, with the classes that no training image shows.

    Args:
        train: of each training set what was checked, and the names of the classes that have objects.
        test: those of the test sets.
    """
    said = [words for words, _ in (*train, *test)]
    learned = {label for _, labels in train for label in labels}
    new = [label for _, labels in test for label in labels if label not in learned]
    if new:
        more = ", …" * (len(new) > 3)
        said.append(f"note: {len(new)} classes of the test set have no training object: {', '.join(new[:3])}{more}")
    return "; ".join(said)


def _write_part(file: Path, part: str, begin: float, end: float) -> Path:
    """Write the images between two fractions of an annotation file to a file beside it, once; return its path."""
    target = file.with_name(f"{file.stem}_{part}.json")
    if not target.exists():
        content = json.loads(file.read_bytes())
        count = len(content["images"])
        content["images"] = content["images"][round(begin * count) : round(end * count)]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
        write_text(target, json.dumps(content))
    return target
