"""The protocols of the literature that a user's detection data set can be trained with, and what it decides of them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """How a detector is trained and built.

    Attributes:
        base: config of detectron2 that it extends.
        mmdet: configs of mmdet that it extends, for boxes and for masks.
        rate: learning rate.
        masks: whether it can predict masks.
        frozen: whether the backbone is not trained.
    """

    base: str
    mmdet: tuple[str, str]
    rate: float = 0.02
    masks: bool = True
    frozen: bool = False


@dataclass(frozen=True)
class Fit:
    """What the size of a data set and of its images decides.

    Attributes:
        iterations: of 16 images.
        short: side of a test image, pixels.
        limit: detections per image.
    """

    iterations: int
    short: int
    limit: int

    @property
    def sides(self) -> list[int]:
        """Short sides in training; for 800 in the test COCO's 640 to 800."""
        return [round(part * self.short) for part in (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)]

    @property
    def long(self) -> int:
        """Longest side; for 800 COCO's 1333."""
        return round(1333 / 800 * self.short)

    @property
    def steps(self) -> list[int]:
        """Iterations after which the learning rate falls to a tenth."""
        return [math.ceil(self.iterations * part) for part in (2 / 3, 8 / 9)]

    @property
    def warm_up(self) -> int:
        """Iterations in which the learning rate rises."""
        return min(1000, self.iterations // 10)


FPN = "bases/fpn-a.yaml", ("faster-fpn", "mask-fpn")
PROTOCOLS = {
    "fpn": Protocol(*FPN),
    "c4": Protocol("bases/c4.yaml", ("faster-c4", "mask-c4")),
    "retinanet": Protocol("coco-retinanet-1x.yaml", ("retinanet", "retinanet"), 0.01, masks=False),
    "fpn-frozen": Protocol(*FPN, frozen=True),
}
