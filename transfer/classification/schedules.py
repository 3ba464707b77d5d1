"""How heads and networks are trained: schedules, rates and views, as options; without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from common.transforms import ViewConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Epochs, batches and learning rate schedule. The rate changes after each epoch, as in the papers' code.

    Args:
        epochs: passes over the training images.
        batch: images per step, over all devices.
        momentum: of the optimiser.
        schedule: "step": times `factor` at each milestone; "cosine": down to 0.
        milestones: fractions of the epochs at which "step" lowers the rate.
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
            raise ValueError(f"optim.momentum={self.momentum}: must be at least 0 and below 1")
        if any(not 0 < milestone < 1 for milestone in self.milestones):
            raise ValueError(f"optim.milestones={self.milestones}: fractions of the epochs, between 0 and 1")

    def rate(self, epoch: int) -> float:
        """Return the fraction of the peak learning rate in an epoch, counted from 0."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        # 0.6 * 5 is a hair above 3 in floating point
        return self.factor ** sum(epoch >= milestone * self.epochs - 1e-9 for milestone in self.milestones)

    def scaled(self, base_lr: float) -> float:
        """Return the peak learning rate for a rate per 256 images."""
        return base_lr * self.batch / 256

    def describe(self) -> str:
        """Return the schedule as a part of a record's title."""
        at = "/".join(f"{milestone * self.epochs:g}" for milestone in self.milestones)
        falls = "cosine" if self.schedule == "cosine" else f"×{self.factor:g} at {at}"
        momentum = "" if self.momentum == Schedule.momentum else f", momentum {self.momentum:g}"
        return f"{self.epochs} epochs, {falls}, batch {self.batch}{momentum}"


@dataclass(frozen=True)
class CropConfig:
    """The training view: a random resized crop and a flip.

    Args:
        scale: smallest and largest fraction of the image's area that a crop covers.
        ratio: smallest and largest width / height of a crop.
        flip: probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def view(self, size: int) -> ViewConfig:
        """Return the configuration of a pre-training view that only crops and flips.

        Raises:
            ValueError: values that make no crop.
        """
        return ViewConfig(
            size=size, scale=self.scale, ratio=self.ratio, flip=self.flip, jitter=0.0, grayscale_prob=0.0, blur=0.0
        )

    def describe(self) -> str:
        """Return the view as a part of a record's title."""
        return f"random crops of {self.scale[0]:g} to {self.scale[1]:g} of the area, flip {self.flip:g}"


@dataclass(frozen=True, kw_only=True)
class HeadOptim(Schedule):
    """How heads are trained. Defaults: MoCo (arXiv 1911.05722, section 4.1; main_lincls.py of its repository).

    MoCo found its base rate of 30 by a grid search: its features are not normalised and small, and so are the gradients
    of the head. Larger features need less (see recipe fashion_linear_moco); mode sweep finds the best rate. Rates are
    per 256 images; the actual rate is base_lr * batch / 256.

    Args:
        optimizer: "sgd", or "lars" (arXiv 1708.03888), which suits batches of thousands.
        base_lr: learning rates per 256 images; with several, one head for each and every weight decay.
        weight_decay: of the head's weights and bias.
    """

    optimizer: Literal["sgd", "lars"] = "sgd"
    base_lr: list[float] = field(default_factory=lambda: [30.0])
    weight_decay: list[float] = field(default_factory=lambda: [0.0])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.base_lr or min(self.base_lr) <= 0:
            raise ValueError(f"optim.base_lr={self.base_lr}: one or more rates above 0")
        if not self.weight_decay or min(self.weight_decay) < 0:
            raise ValueError(f"optim.weight_decay={self.weight_decay}: one or more numbers, 0 or above")

    @property
    def heads(self) -> list[tuple[float, float]]:
        """(base_lr, weight decay) of each head."""
        return [(lr, decay) for lr in self.base_lr for decay in self.weight_decay]


CACHED = "cached"  # mode of linear.py: logistic regression on features that are computed once
MODES: dict[str, HeadOptim] = {
    "moco": HeadOptim(),
    # SimSiam's linear protocol (arXiv 2011.10566, appendix A; facebookresearch/simsiam@a7bc177, README).
    "lars": HeadOptim(optimizer="lars", base_lr=[0.1], batch=4096, epochs=90, schedule="cosine"),
    "sweep": HeadOptim(
        base_lr=[0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0], weight_decay=[0.0, 1e-6], schedule="cosine", epochs=30
    ),
}


@dataclass(frozen=True, kw_only=True)
class TuneOptim(Schedule):
    """How backbone and head are fine-tuned. Defaults: OpenSelfSup's semi-supervised benchmark, all nine pairs of rates.

    (WXinlong/DenseCL@b64bbb6, benchmarks/configs/semi_classification; its best of nine is chosen on the validation
    set, ours on a held-out tenth of the labelled images.)

    Args:
        base_lr: learning rates of the backbone per 256 images, to choose from.
        head_factor: multiples of it for the head, to choose from.
        weight_decay: of every parameter.
    """

    epochs: int = 20
    factor: float = 0.2
    base_lr: list[float] = field(default_factory=lambda: [0.001, 0.01, 0.1])
    head_factor: list[float] = field(default_factory=lambda: [1.0, 10.0, 100.0])
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("base_lr", "head_factor"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise ValueError(f"optim.{name}={values}: one or more numbers above 0")

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """(base rate of the backbone, multiple of it for the head)."""
        return [(lr, factor) for lr in self.base_lr for factor in self.head_factor]

    def only(self, pair: tuple[float, float]) -> TuneOptim:
        """Return the same with one pair of rates."""
        return replace(self, base_lr=[pair[0]], head_factor=[pair[1]])

    def describe_rates(self) -> str:
        """Return the rates as a part of a record's title."""
        lr, factors = ("/".join(f"{value:g}" for value in values) for values in (self.base_lr, self.head_factor))
        chosen = ", chosen on a held-out tenth of the labelled images" if len(self.pairs) > 1 else ""
        return f"base lr {lr}, head × {factors}{chosen}"
