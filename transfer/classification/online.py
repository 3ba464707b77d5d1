"""Heads trained by SGD or LARS on random views, the trunk frozen in evaluation mode.

One head, or many with different rates at once: the trunk, which takes nearly all the time, runs once for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F

from common.distributed import all_mean_, world_size
from common.features import FeatureExtractor
from common.images import ImageSet
from transfer.classification.heads import new_head
from transfer.classification.loop import Loop, Work
from transfer.classification.schedule import CropConfig, Schedule

KNOWN_RATES = (0.01, 100.0)  # base rates seen in the literature for heads on pooled ResNet features


@dataclass(frozen=True, kw_only=True)
class HeadOptim(Schedule):
    """How heads are trained. Defaults: MoCo (arXiv 1911.05722, section 4.1; main_lincls.py of its repository).

    MoCo found its rate of 30 by a grid search and takes it as a sign of how small its features are: they are not
    normalised, and so are the gradients of the head. Larger features want less (see recipe fashion_linear_moco); mode
    sweep finds out. It holds for 256 images; the actual rate is base_lr * batch / 256.

    Args:
        optimizer: "sgd", or "lars" (arXiv 1708.03888), which suits batches of thousands.
        base_lr: learning rates per 256 images; several: one head each, for every weight decay.
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


MODES: dict[str, HeadOptim] = {
    "moco": HeadOptim(),
    # SimSiam's linear protocol (arXiv 2011.10566, appendix A; facebookresearch/simsiam@a7bc177, README).
    "lars": HeadOptim(optimizer="lars", base_lr=[0.1], batch=4096, epochs=90, schedule="cosine"),
    "sweep": HeadOptim(
        base_lr=[0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0], weight_decay=[0.0, 1e-6], schedule="cosine", epochs=30
    ),
}


def train_heads(
    network: nn.Module, width: int, images: ImageSet, optim: HeadOptim, crop: CropConfig, work: Work,
    start: nn.Linear | None = None,
) -> list[nn.Linear]:  # fmt: skip
    """Trains one head for each rate and weight decay on the features of random views.

    Args:
        network: the trunk, on the device; it is in evaluation mode and nothing of it changes.
        width: of its features, D.
        images: see `Loop`.
        optim: hyper-parameters.
        crop: the views.
        work: where and how.
        start: a head to start from, in place of random weights.

    Returns:
        The heads after the last epoch, in the order of `optim.heads`.

    Raises:
        Diverged: every head's loss is not finite.
        ValueError: the state in the folder does not fit.
    """
    heads = nn.ModuleList(new_head(width, len(images.classes), work.seed) for _ in optim.heads).to(work.device)
    if start is not None:
        for head in heads:
            head.load_state_dict(start.state_dict(), strict=True)
    optimizer = _optimizer(heads, optim)
    loop = Loop(images, optim, crop, work, optimizer, heads=heads)
    with FeatureExtractor(network, work.device, work.dtype) as run:
        for batch in loop:
            loop.losses = _step(heads, optimizer, run(batch.q), batch.labels.to(work.device))
    return [head for head in heads if isinstance(head, nn.Linear)]


def _optimizer(heads: nn.ModuleList, optim: HeadOptim) -> torch.optim.Optimizer:
    """One group a head; `peak` is its rate before the schedule lowers it."""
    groups = [
        {"params": list(head.parameters()), "lr": optim.scaled(lr), "peak": optim.scaled(lr), "weight_decay": decay}
        for head, (lr, decay) in zip(heads, optim.heads, strict=True)
    ]
    if optim.optimizer == "lars":
        return Lars(groups, momentum=optim.momentum, always_adapt=True)
    return torch.optim.SGD(groups, momentum=optim.momentum)


def _step(heads: nn.ModuleList, optimizer: torch.optim.Optimizer, features: Tensor, labels: Tensor) -> Tensor:
    """One step of all heads on features (n, D) and labels (n,); returns their losses, (heads,)."""
    losses = torch.stack([F.cross_entropy(head(features), labels) for head in heads])
    optimizer.zero_grad()
    losses.sum().backward()  # each head sees its own loss only
    all_mean_([p.grad for p in heads.parameters() if p.grad is not None])
    optimizer.step()
    return losses.detach()


def rates_in_words(optim: HeadOptim) -> str:
    """Base and actual rates, for the screen; and a warning where a base rate is off what is known."""
    pairs = ", ".join(f"{lr:g} -> {optim.scaled(lr):g}" for lr in optim.base_lr)
    text = f"base lr per 256 images -> lr at batch {optim.batch} over {world_size()} processes: {pairs}"
    if optim.optimizer == "sgd" and not all(KNOWN_RATES[0] <= lr <= KNOWN_RATES[1] for lr in optim.base_lr):
        text += (
            f"\nwarning: base rates for un-normalised features lie between {KNOWN_RATES[0]:g} and {KNOWN_RATES[1]:g}"
        )
    return text
