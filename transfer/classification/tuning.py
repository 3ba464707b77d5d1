"""A trunk and its head trained together, with rates of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from common.distributed import world_size
from common.features import network_input, raw_features
from common.images import ImageSet
from converters import Backbone
from transfer.classification.heads import new_head
from transfer.classification.loop import Loop, Work
from transfer.classification.schedule import CropConfig, Schedule


@dataclass(frozen=True, kw_only=True)
class TuneOptim(Schedule):
    """How trunk and head are fine-tuned. Defaults: OpenSelfSup's semi-supervised benchmark, all nine pairs.

    (WXinlong/DenseCL@b64bbb6, benchmarks/configs/semi_classification; its best of nine is chosen on the validation
    set, ours on a held-out tenth of the labelled images.)

    Args:
        base_lr: learning rates of the trunk per 256 images, to choose from.
        head_factor: multiples of it that the head gets, to choose from.
        weight_decay: on every parameter.
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
        """(trunk's base rate, head's multiple of it)."""
        return [(lr, times) for lr in self.base_lr for times in self.head_factor]

    def only(self, pair: tuple[float, float]) -> TuneOptim:
        """The same with one pair of rates."""
        return replace(self, base_lr=[pair[0]], head_factor=[pair[1]])

    def rates_in_words(self) -> str:
        """For the fine print."""
        lr, times = ("/".join(f"{value:g}" for value in values) for values in (self.base_lr, self.head_factor))
        chosen = ", chosen on a held-out tenth of the labelled images" if len(self.pairs) > 1 else ""
        return f"base lr {lr}, head × {times}{chosen}"


class Tuned(nn.Module):
    """A trunk with a linear head: images (n, 3, S, S) -> logits (n, C)."""

    def __init__(self, trunk: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, C)."""
        logits: Tensor = self.head(self.trunk(x))
        return logits


def tune(
    backbone: Backbone, images: ImageSet, optim: TuneOptim, crop: CropConfig, work: Work, start: nn.Linear | None = None
) -> Tuned:
    """Trains the backbone's network and a head on labelled images.

    Args:
        backbone: where the trunk starts; it stays as it is.
        images: see `Loop`.
        optim: hyper-parameters, with one pair of rates.
        crop: the training views.
        work: where and how.
        start: the head to start from, in place of a random one.

    Returns:
        The model after the last epoch, in evaluation mode.

    Raises:
        Diverged: the loss is not finite.
        ValueError: the state in the folder does not fit.
    """
    ((lr, times),) = optim.pairs
    head = new_head(backbone.feature_dim, len(images.classes), work.seed)
    if start is not None:
        head.load_state_dict(start.state_dict(), strict=True)
    model = Tuned(backbone.build(), head).to(work.device).to(memory_format=torch.channels_last)
    if world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    peaks = [optim.scaled(lr), optim.scaled(lr) * times]
    groups = [
        {"params": list(part.parameters()), "lr": peak, "peak": peak}
        for part, peak in zip((model.trunk, model.head), peaks, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, momentum=optim.momentum, weight_decay=optim.weight_decay)
    scaler = torch.amp.GradScaler(work.device.type, enabled=work.dtype == torch.float16)
    loop = Loop(images, optim, crop, work, optimizer, model=model, scaler=scaler)
    forward: Callable[[Tensor], Tensor] = model if world_size() == 1 else DistributedDataParallel(model)
    model.train()
    for batch in loop:
        with torch.autocast(work.device.type, work.dtype, enabled=work.dtype is not None):
            logits = forward(network_input(batch.q, work.device))
        loss = F.cross_entropy(logits.float(), batch.labels.to(work.device))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loop.losses = loss.detach()[None]
    return model.eval()


def predict_all(model: nn.Module, images: ImageSet, work: Work, first: int = 5) -> Tensor:
    """(N, first) int64 on the CPU: the most likely classes of the centre views, the likeliest first."""
    parts = [
        logits.topk(min(first, logits.shape[1]), dim=1).indices.cpu()
        for logits in raw_features(model, images, work.size, work.device, workers=work.workers, dtype=work.dtype)
    ]
    return torch.cat(parts)
