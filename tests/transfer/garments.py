"""Trousers and bags of Fashion-MNIST as class folders: real images that random features tell apart."""

from __future__ import annotations

from pathlib import Path

import cv2

from common.images import load_images

ROOT = Path(__file__).parents[2]
TROUSER, BAG = 1, 8


def write_garments(path: Path, train: int = 20, test: int = 10) -> Path:
    """Class folders 1 and 8 in PATH/train and PATH/test, with so many images each; returns PATH."""
    images = load_images(["fashion:test"], root=str(ROOT / "data"))
    for label in (TROUSER, BAG):
        numbers = (images.labels == label).nonzero()[0]
        for split, places in (("train", slice(0, train)), ("test", slice(train, train + test))):
            folder = path / split / str(label)
            folder.mkdir(parents=True)
            for i in numbers[places]:
                cv2.imwrite(str(folder / f"{i}.png"), images.read(int(i)))
    return path


def arguments(garments: Path, to: Path, **more: object) -> list[str]:
    """Options of a classification command on the garments, on the CPU, with all outputs below `to`."""
    values = {
        "ckpt": "random:resnet18", "data": garments, "size": 32, "records": to / "records.jsonl", "out": to / "out",
        "cache": to / "cache", "device": "cpu", "pictures": "false", "workers": 0,
    } | more  # fmt: skip
    return [f"--{name.replace('__', '.')}={value}" for name, value in values.items()]
