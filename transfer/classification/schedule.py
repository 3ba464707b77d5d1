"""Learning rate over the epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from common.transforms import ViewConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Batches, epochs, and how the rate falls. It moves after each epoch, as in the papers' code.

    Args:
        epochs: passes over the training images.
        batch: images per step, over all devices.
        momentum: of the optimiser.
        schedule: "step": times `factor` at each milestone; "cosine": down to 0.
        milestones: shares of the epochs at which "step" lowers the rate.
        factor: what the rate is multiplied by at a milestone.
    """

    epochs: int = 100
    batch: int = 256
    momentum: float = 0.9
    schedule: Literal["step", "cosine"] = "step"
    milestones: list[float] = field(default_factory=lambda: [0.6, 0.8])
    factor: float = 0.1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"optim.{name}={getattr(self, name)}: must be 1 or more")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum={self.momentum}: lies between 0 and 1")
        if any(not 0 < share < 1 for share in self.milestones):
            raise ValueError(f"optim.milestones={self.milestones}: shares of the epochs, between 0 and 1")

    def rate(self, epoch: int) -> float:
        """Share of the peak learning rate in an epoch, counted from 0."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        # 0.6 * 5 is a hair above 3 in floating point
        return self.factor ** sum(epoch >= share * self.epochs - 1e-9 for share in self.milestones)

    def scaled(self, base_lr: float) -> float:
        """Peak learning rate for a rate per 256 images."""
        return base_lr * self.batch / 256

    def in_words(self) -> str:
        """For the fine print."""
        at = "/".join(f"{share * self.epochs:g}" for share in self.milestones)
        falls = "cosine" if self.schedule == "cosine" else f"×{self.factor:g} at {at}"
        momentum = "" if self.momentum == Schedule.momentum else f", momentum {self.momentum:g}"
        return f"{self.epochs} epochs, {falls}, batch {self.batch}{momentum}"


@dataclass(frozen=True)
class CropConfig:
    """The training view: a random resized crop and a flip.

    Args:
        scale: smallest and largest share of the image's area that a crop covers.
        ratio: smallest and largest width / height of a crop.
        flip: probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def view(self, size: int) -> ViewConfig:
        """As pre-training's views are configured; raises ValueError for values that make no crop."""
        return ViewConfig(
            size=size, scale=self.scale, ratio=self.ratio, flip=self.flip, jitter=0.0, grayscale_prob=0.0, blur=0.0
        )

    def in_words(self) -> str:
        """For the fine print."""
        return f"random crops of {self.scale[0]:g} to {self.scale[1]:g} of the area, flip {self.flip:g}"
