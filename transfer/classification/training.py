"""Training in epochs that can be killed and resumed: schedule, views, batches, state."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.distributed import any_rank, rank
from common.files import write_tensors
from common.images import CorruptImageError, ImageSet
from common.loaders import Batch, GlobalBatches, OneView, default_workers, train_loader
from transfer.classification.schedules import CropConfig, Schedule

STATE = "state.pth"


class DivergedError(ValueError):
    """The loss is not finite: the rates are too high; a search over rates may skip them."""


@dataclass(frozen=True)
class Setting:
    """Where and how a training runs, besides its hyper-parameters.

    Args:
        folder: run folder; the state is saved there after each epoch.
        seed: of initialisation, order and views.
        device: where to compute.
        dtype: autocast type; None = fp32.
        size: side of the views in pixels.
        workers: loader processes; default: see `default_workers`.
        resume: continue from the folder's state.
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


class ResumableLoop:
    """Iterate over the batches of all epochs; the body trains on a batch and sets `losses`.

    The optimiser's groups hold their highest rate as "peak". After each epoch the losses are checked and the state is
    saved: tensors and builtins, enough to resume and end in the same bits (on a CPU).

    Args:
        images: labelled, at least one batch; those that do not fill a batch at the end of an epoch are left out.
        optim: epochs, batch and rates; resuming needs the same.
        crop: the views.
        setting: where and how.
        optimizer: of what is trained.
        parts: further modules and the like whose state is saved, by name.

    Raises:
        ValueError: the state in the folder is of other options.
        CorruptImageError: an image cannot be read: unlike in pre-training, none is replaced.
    """

    def __init__(
        self, images: ImageSet, optim: Schedule, crop: CropConfig, setting: Setting, optimizer: torch.optim.Optimizer,
        **parts: Any,
    ) -> None:  # fmt: skip
        self.images, self.optim, self.crop, self.setting, self.optimizer = images, optim, crop, setting, optimizer
        self.parts = {**parts, "optimizer": optimizer}
        self.config = repr((asdict(optim), asdict(crop), setting.seed, setting.size, str(setting.dtype), len(images)))
        self.losses = torch.zeros(1)
        self.began, self.earlier = time.time(), 0.0  # seconds of earlier starts, up to the state that they saved
        self.epoch = self._load() if setting.resume and setting.state.is_file() else 0

    def __iter__(self) -> Iterator[Batch]:
        setting, batch = self.setting, self.optim.batch
        per_epoch = len(self.images) // batch
        step, steps = self.epoch * per_epoch, self.optim.epochs * per_epoch
        workers = setting.workers
        if workers is None:
            workers = default_workers(setting.device, self.images.in_memory)
        views = OneView(self.images, self.images.labels, self.crop.view(setting.size), setting.seed)
        order = GlobalBatches(len(self.images), batch, setting.seed, step, steps)
        with tqdm(total=steps, initial=step, unit="step", disable=rank() != 0, leave=False) as bar:
            for views_of_batch in train_loader(views, order, workers, setting.device):
                for group in self.optimizer.param_groups:
                    group["lr"] = group["peak"] * self.optim.rate(self.epoch)
                if views_of_batch.corrupt:
                    raise CorruptImageError(next(iter(views_of_batch.corrupt.values())))
                yield views_of_batch
                step += 1
                bar.update()
                if step % per_epoch == 0:
                    self.epoch += 1
                    bar.set_postfix_str(f"epoch {self.epoch}, loss {self._lowest_loss():.3f}")
                    self._save()

    def _load(self) -> int:
        path = self.setting.state
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path} cannot be read; leave --resume out to start afresh") from error
        if saved["config"] != self.config:
            raise ValueError(f"{path} belongs to other options; leave --resume out to start afresh")
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        self.earlier = float(saved["seconds"])
        return int(saved["epoch"])

    def _save(self) -> None:
        if rank() == 0:
            content = {name: part.state_dict() for name, part in self.parts.items()}
            seconds = self.earlier + time.time() - self.began
            content |= {"epoch": self.epoch, "config": self.config, "seconds": seconds, "earlier": self.earlier}
            write_tensors(self.setting.state, content)

    def _lowest_loss(self) -> float:
        """Return the lowest of the losses: of many heads some may have diverged, not all.

        Raises:
            DivergedError: none is finite, on this rank or another.
        """
        finite: list[float] = self.losses[torch.isfinite(self.losses)].tolist()
        if any_rank(not finite, self.losses.device):
            rates = "/".join(f"{group['peak']:g}" for group in self.optimizer.param_groups)
            raise DivergedError(f"the loss is not finite in epoch {self.epoch} with lr {rates}; lower --optim.base_lr")
        return min(finite)


def remove_states(folder: Path) -> dict[str, float]:
    """Remove the states of a finished run, all below its folder; on rank 0 return the cost of earlier starts."""
    if rank() != 0:
        return {}
    earlier = 0.0
    for path in folder.rglob(STATE):
        earlier += float(torch.load(path, weights_only=True, map_location="cpu")["earlier"])
        path.unlink()
    return {"seconds_before_resuming": earlier} if earlier else {}
