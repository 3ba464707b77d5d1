"""A small data set of images and masks, and a task of one's own for it. Needs no mmseg."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from transfer.tasks import SEGMENTATION

CLASSES = ["ground", "cat", "dog"]
SIZE = (20, 16)  # width and height
COUNTS = {"train": 3, "val": 2}


def write_set(root: Path, classes: int = len(CLASSES)) -> Path:
    """Write ROOT/mine with images of noise and masks that show every class; return that folder."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for i in range(count):
            labels = rng.integers(0, classes, SIZE[::-1], dtype=np.uint8)
            labels[0, :classes] = np.arange(classes)
            labels[1] = 255
            write_image(root / "mine" / "images" / split / f"{i}.jpg", rng)
            write_mask(root / "mine" / "masks" / split / f"{i}.png", labels)
    return root / "mine"


def write_image(path: Path, rng: np.random.Generator, size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    """Write an image of noise, with an EXIF orientation unless that is 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path, exif=exif)


def write_mask(path: Path, labels: np.ndarray) -> None:
    """Write a mask; its type decides the format of the PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def write_task(path: Path, classes: list[str] | None = None, lists: bool = False, **settings: object) -> Path:
    """Write a task that trains an FCN with a ResNet-18 on the set for two iterations; return its file.

    Args:
        path: of the file.
        classes: names; default: CLASSES.
        lists: images are named by mine/train.txt and mine/val.txt, not by their folder.
        **settings: of the file; or of both data sets, where their name begins with `dataset_`.
    """
    names = CLASSES if classes is None else classes
    head = {"num_classes": len(names), "loss_decode": {"class_weight": None}}
    inside = {name.removeprefix("dataset_"): value for name, value in settings.items() if name.startswith("dataset_")}

    def dataset(split: str) -> dict[str, object]:
        return {
            "data_root": "mine", "img_suffix": ".jpg", "metainfo": {"classes": names},
            "pipeline": [{"type": step} for step in ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")],
            "data_prefix": {"img_path": f"images/{split}", "seg_map_path": f"masks/{split}"},
            **({"ann_file": f"{split}.txt"} if lists else {}), **inside,
        }  # fmt: skip

    task = {
        "_base_": [str(SEGMENTATION.find("fashion-fcn"))], "scenes": None, "data_root": "mine", "absent_classes": None,
        "model": {"decode_head": head, "auxiliary_head": head, "data_preprocessor": {"size": [16, 16]}},
        "train_dataloader": {"dataset": dataset("train")}, "val_dataloader": {"dataset": dataset("val")},
        "test_dataloader": {"dataset": dataset("val")},
        "train_cfg": {"max_iters": 2, "val_interval": 2},
    } | {name: value for name, value in settings.items() if not name.startswith("dataset_")}  # fmt: skip
    path.write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    return path


def command(root: Path, task: Path, *more: str) -> list[str]:
    """Return the arguments of `segment` for a task below a root, with all outputs below it."""
    folders = {"data-root": root, "out": root / "out", "records": root / "records"}
    given = [f"--{name}={value}" for name, value in folders.items()]
    return ["--ckpt=random:resnet18", f"--task={task}", "--device=cpu", *given, *more]
