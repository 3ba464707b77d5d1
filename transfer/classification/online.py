"""Heads trained by SGD or LARS on random views, the trunk frozen in evaluation mode.

One head, or many with different rates at once: the trunk, which takes nearly all the time, runs once for all.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pretrain.checkpoint import write_atomically
from pretrain.data import GlobalBatches, default_workers, train_loader
from pretrain.distributed import all_mean_, any_rank, rank, world_size
from pretrain.images import CorruptImageError, ImageSet
from pretrain.knn import InThreads
from transfer.classification.data import OneView
from transfer.classification.heads import new_head
from transfer.classification.schedule import CropConfig, Schedule

STATE = "state.pth"
MAX_CORRUPT = 0.001  # share of the images that may be unreadable, as in pre-training
KNOWN_RATES = (0.01, 100.0)  # base rates seen in the literature for heads on pooled ResNet features


@dataclass(frozen=True, kw_only=True)
class HeadOptim(Schedule):
    """How heads are trained. Defaults: MoCo (arXiv 1911.05722, section 4.1; main_lincls.py of its repository).

    The rate of 30 is large because pooled features of a frozen ResNet are not normalised: their values lie around
    0.01 to 1, so gradients of the head are small. It holds for 256 images; the actual one is base_lr * batch / 256.

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


@dataclass(frozen=True)
class Work:
    """Where and how a training runs, besides its hyper-parameters.

    Args:
        folder: its run folder; the state is kept there after each epoch.
        seed: of initialisation, order and views.
        device: where it computes.
        dtype: autocast type of the trunk; None = fp32.
        size: side of the views, pixels.
        workers: loader processes.
        resume: go on from the folder's state.
    """

    folder: Path
    seed: int
    device: torch.device
    dtype: torch.dtype | None
    size: int
    workers: int | None = None
    resume: bool = False

    def loaders(self, images: ImageSet) -> int:
        """Loader processes: as asked for; else none for images in memory on a CPU."""
        if self.workers is not None:
            return self.workers
        return 0 if images.in_memory and self.device.type == "cpu" else default_workers(self.device)


class State:
    """What a training needs to go on, kept after each epoch in a file; readable without running code.

    Args:
        work: names folder and whether to resume.
        config: everything that must be the same to go on.
        parts: modules and optimisers.
    """

    def __init__(self, work: Work, config: dict[str, Any], parts: dict[str, Any]) -> None:
        self.path, self.config, self.parts = work.folder / STATE, config, parts
        self.epoch = 0
        if work.resume and self.path.is_file():
            self._load()

    def _load(self) -> None:
        try:
            saved = torch.load(self.path, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{self.path} cannot be read; leave --resume out to start anew") from error
        if saved["config"] != self.config:
            raise ValueError(f"{self.path} belongs to other options; leave --resume out to start anew")
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.epoch = saved["epoch"]

    def save(self, epoch: int) -> None:
        """Keeps the state after so many epochs; rank 0 writes."""
        self.epoch = epoch
        if rank() == 0:
            content = {name: part.state_dict() for name, part in self.parts.items()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self.path, lambda part: torch.save({"epoch": epoch, "config": self.config, **content}, part)
            )

    def drop(self) -> None:
        """Removes the file of a finished training."""
        if rank() == 0:
            self.path.unlink(missing_ok=True)


def train_heads(
    network: nn.Module, width: int, images: ImageSet, optim: HeadOptim, crop: CropConfig, work: Work,
    start: nn.Linear | None = None,
) -> list[nn.Linear]:  # fmt: skip
    """Trains one head for each rate and weight decay on the features of random views.

    Args:
        network: the trunk, on the device; it is in evaluation mode and nothing of it changes.
        width: of its features, D.
        images: labelled, at least a batch of them; what does not fill a batch at an epoch's end is left out.
        optim: hyper-parameters.
        crop: the views.
        work: where and how.
        start: a head to start from, in place of random weights.

    Returns:
        The heads after the last epoch, in the order of `optim.heads`.

    Raises:
        ValueError: the loss of a lone head is not finite, or the state in the folder does not fit.
    """
    heads = nn.ModuleList(new_head(width, len(images.classes), work.seed) for _ in optim.heads).to(work.device)
    if start is not None:
        for head in heads:
            head.load_state_dict(start.state_dict(), strict=True)
    optimizer = _optimizer(heads, optim)
    config = {"optim": asdict(optim), "crop": asdict(crop), "seed": work.seed, "size": work.size, "images": len(images)}
    state = State(work, {name: repr(value) for name, value in config.items()}, {"heads": heads, "optimizer": optimizer})
    per_epoch = len(images) // optim.batch
    step, steps = state.epoch * per_epoch, optim.epochs * per_epoch
    loader = train_loader(
        OneView(images, images.labels, crop.view(work.size), work.seed),
        GlobalBatches(len(images), optim.batch, work.seed, step, steps), work.loaders(images), work.device,
    )  # fmt: skip
    corrupt: set[int] = set()
    run = InThreads(network, work.device, work.dtype)
    with run, tqdm(total=steps, initial=step, unit="step", disable=rank() != 0) as bar:
        for batch in loader:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * optim.rate(step // per_epoch)
            losses = _step(heads, optimizer, run(batch.q), batch.labels.to(work.device))
            count_corrupt(corrupt, batch.corrupt, len(images))
            step += 1
            bar.update()
            if step % per_epoch == 0:
                _check(losses, optim, step // per_epoch, bar)
                state.save(step // per_epoch)
    state.drop()
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


def _check(losses: Tensor, optim: HeadOptim, epoch: int, bar: Any) -> None:
    """Says the losses at an epoch's end; among many heads some may diverge, one alone may not."""
    values = losses.tolist()
    if any_rank(len(values) == 1 and not math.isfinite(values[0]), losses.device):
        raise ValueError(
            f"the head's loss is not finite in epoch {epoch} with base_lr {optim.base_lr[0]:g}; lower --optim.base_lr, "
            "or let --mode sweep choose it"
        )
    finite = [value for value in values if math.isfinite(value)] or [math.inf]
    bar.set_postfix_str(f"epoch {epoch}, loss {min(finite):.3f}")


def count_corrupt(seen: set[int], found: dict[int, str], images: int) -> None:
    """Names each unreadable training image once.

    Raises:
        CorruptImageError: there are more than one in a thousand.
    """
    for number, reason in found.items():
        if number not in seen:
            seen.add(number)
            tqdm.write(f"warning: image skipped: {reason}")
    if len(seen) > math.ceil(MAX_CORRUPT * images):
        raise CorruptImageError(f"{len(seen)} of {images} training images cannot be read")


def rates_in_words(optim: HeadOptim) -> str:
    """Base and actual rates, for the screen; and a warning where a base rate is off what is known."""
    pairs = ", ".join(f"{lr:g} -> {optim.scaled(lr):g}" for lr in optim.base_lr)
    text = f"base lr per 256 images -> lr at batch {optim.batch} over {world_size()} processes: {pairs}"
    if optim.optimizer == "sgd" and not all(KNOWN_RATES[0] <= lr <= KNOWN_RATES[1] for lr in optim.base_lr):
        text += (
            f"\nwarning: base rates for un-normalised features lie between {KNOWN_RATES[0]:g} and {KNOWN_RATES[1]:g}"
        )
    return text


def best_head(heads: Sequence[nn.Linear], tried: Sequence[float]) -> int:
    """Number of the head with the highest held-out accuracy, the first of equals."""
    return max(range(len(heads)), key=lambda i: (tried[i], -i))
