"""Trousers and bags of Fashion-MNIST as class folders: real images that random features tell apart."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from common.images import load_images
from results.record import Record, read_all

ROOT = Path(__file__).parents[2]
TROUSER, BAG = 1, 8


def write_garments(path: Path, train: int = 20, test: int = 10) -> Path:
    """Write class folders 1 and 8 into PATH/train and PATH/test, with so many images each; return PATH."""
    images = load_images(["fashion:test"], root=str(ROOT / "data"))
    for label in (TROUSER, BAG):
        indices = (images.labels == label).nonzero()[0]
        for split, part in (("train", slice(0, train)), ("test", slice(train, train + test))):
            folder = path / split / str(label)
            folder.mkdir(parents=True)
            for i in indices[part]:
                cv2.imwrite(str(folder / f"{i}.png"), images.read(int(i)))
    return path


def arguments(garments: Path, to: Path, **more: object) -> list[str]:
    """Return the options of a classification command on the garments, on the CPU, with all outputs below `to`."""
    values = {
        "ckpt": "random:resnet18", "data": garments, "size": 32, "records": to / "records", "out": to / "out",
        "cache": to / "cache", "device": "cpu", "pictures": "false", "workers": 0,
    } | more  # fmt: skip
    return [f"--{name.replace('__', '.')}={value}" for name, value in values.items()]


def recorded(to: Path) -> list[Record]:
    """Return the records that a command with `arguments(..., to)` has written."""
    return read_all(to / "records")


def per_image(to: Path, record: Record) -> dict[str, np.ndarray]:
    """Return the values per test image that stand beside a record."""
    assert record.per_image is not None
    with np.load((to / "records" / record.path).with_name(record.per_image)) as arrays:
        return dict(arrays)
