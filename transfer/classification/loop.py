"""A training in epochs that can be killed and resumed, whatever is trained: batches, rates, state."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.distributed import any_rank, rank
from common.files import write_atomically
from common.images import CorruptImageError, ImageSet
from common.loaders import Batch, GlobalBatches, default_workers, train_loader
from transfer.classification.data import OneView
from transfer.classification.schedule import CropConfig, Schedule

STATE = "state.pth"
MAX_CORRUPT = 0.001  # share of the images that may be unreadable, as in pre-training


class Diverged(ValueError):
    """A training whose loss is not finite: a mistake in its rates, which a grid of rates may pass over."""


@dataclass(frozen=True)
class Work:
    """Where and how a training runs, besides its hyper-parameters.

    Args:
        folder: its run folder; the state is kept there after each epoch.
        seed: of initialisation, order and views.
        device: where it computes.
        dtype: autocast type; None = fp32.
        size: side of the views, pixels.
        workers: loader processes; default: none for images in memory on a CPU.
        resume: go on from the folder's state.
    """

    folder: Path
    seed: int
    device: torch.device
    dtype: torch.dtype | None
    size: int
    workers: int | None = None
    resume: bool = False

    @property
    def state(self) -> Path:
        """File of the state."""
        return self.folder / STATE


class Loop:
    """Iterates over the batches of all epochs; the body trains on one and puts its losses into `losses`.

    The optimiser's groups hold their highest rate as "peak". After each epoch losses are looked at and the state is
    kept: readable without running code, enough to go on and end in the same bits (on a CPU).

    Args:
        images: labelled, at least a batch of them; what does not fill a batch at an epoch's end is left out.
        optim: batch, epochs and rates, and all else that must be the same to go on.
        crop: the views.
        work: where and how.
        optimizer: of what is trained.
        parts: modules and the like that are trained, by name.

    Raises:
        ValueError: the state in the folder does not fit.
    """

    def __init__(
        self, images: ImageSet, optim: Schedule, crop: CropConfig, work: Work, optimizer: torch.optim.Optimizer,
        **parts: Any,
    ) -> None:  # fmt: skip
        self.images, self.optim, self.crop, self.work, self.optimizer = images, optim, crop, work, optimizer
        self.parts = {**parts, "optimizer": optimizer}
        self.config = repr((asdict(optim), asdict(crop), work.seed, work.size, str(work.dtype), len(images)))
        self.losses = torch.zeros(1)
        self.began, self.earlier = time.time(), 0.0  # seconds of earlier starts, up to the state they left
        self.epoch = self._load() if work.resume and work.state.is_file() else 0

    def _load(self) -> int:
        path = self.work.state
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path} cannot be read; leave --resume out to start anew") from error
        if saved["config"] != self.config:
            raise ValueError(f"{path} belongs to other options; leave --resume out to start anew")
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.earlier = float(saved["seconds"])
        return int(saved["epoch"])

    def _save(self) -> None:
        if rank() == 0:
            content = {name: part.state_dict() for name, part in self.parts.items()}
            self.work.folder.mkdir(parents=True, exist_ok=True)
            seconds = self.earlier + time.time() - self.began
            content |= {"epoch": self.epoch, "config": self.config, "seconds": seconds, "earlier": self.earlier}
            write_atomically(self.work.state, lambda part: torch.save(content, part))

    def __iter__(self) -> Iterator[Batch]:
        work, batch = self.work, self.optim.batch
        per_epoch = len(self.images) // batch
        step, steps = self.epoch * per_epoch, self.optim.epochs * per_epoch
        workers = work.workers
        if workers is None:
            workers = 0 if self.images.in_memory and work.device.type == "cpu" else default_workers(work.device)
        views = OneView(self.images, self.images.labels, self.crop.view(work.size), work.seed)
        order = GlobalBatches(len(self.images), batch, work.seed, step, steps)
        corrupt: set[int] = set()
        with tqdm(total=steps, initial=step, unit="step", disable=rank() != 0, leave=False) as bar:
            for views_of_batch in train_loader(views, order, workers, work.device):
                for group in self.optimizer.param_groups:
                    group["lr"] = group["peak"] * self.optim.rate(self.epoch)
                yield views_of_batch
                count_corrupt(corrupt, views_of_batch.corrupt, len(self.images))
                step += 1
                bar.update()
                if step % per_epoch == 0:
                    self.epoch += 1
                    bar.set_postfix_str(f"epoch {self.epoch}, loss {self._lowest_loss():.3f}")
                    self._save()

    def _lowest_loss(self) -> float:
        """The lowest of the losses; of many heads some may have diverged, not all.

        Raises:
            Diverged: none is finite, on this rank or another.
        """
        finite: list[float] = self.losses[torch.isfinite(self.losses)].tolist()
        if any_rank(not finite, self.losses.device):
            rates = "/".join(f"{group['peak']:g}" for group in self.optimizer.param_groups)
            raise Diverged(f"the loss is not finite in epoch {self.epoch} with lr {rates}; lower --optim.base_lr")
        return min(finite)


def finish(folder: Path) -> dict[str, float]:
    """Removes the states of a finished run, all below its folder; returns what earlier starts have cost, on rank 0."""
    if rank() != 0:
        return {}
    earlier = 0.0
    for path in folder.rglob(STATE):
        earlier += float(torch.load(path, weights_only=True, map_location="cpu")["earlier"])
        path.unlink()
    return {"seconds_before_resuming": earlier} if earlier else {}


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
