"""What the loss means, in numbers and in words; kNN on held-out images; progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.models.resnet import ResNet
from torch import Tensor
from tqdm import tqdm

from common.distributed import all_mean_, any_rank, rank
from common.features import extract_features
from common.images import UNLABELLED, ImageSet
from common.knn import accuracy, knn_predict
from common.labels import choose_balanced
from common.run_folder import RunFolder
from pretrain.config import MonitorConfig

DATA_SHARE_WARNING = 0.2
COLLAPSE = 0.1  # embedding_std of a healthy run lies between 0.5 and 1
PLATEAU_BAND = 0.01


class NonFiniteError(RuntimeError):
    """The loss or the gradient is no longer a number."""


def say(text: str) -> None:
    """A line above the progress bar, from rank 0."""
    if rank() == 0:
        tqdm.write(text)


class Knn:
    """Weighted kNN of held-out images (or a test set) against labelled training images."""

    def __init__(
        self, bank: ImageSet, queries: ImageSet, config: MonitorConfig, size: int, workers: int | None
    ) -> None:
        labelled = np.flatnonzero(bank.labels != UNLABELLED)
        share = min(1.0, config.bank / max(len(labelled), 1))
        self.bank = bank.subset(choose_balanced(bank.labels, share, seed=0))
        self.queries = queries.subset(np.flatnonzero(queries.labels != UNLABELLED))
        if len(self.bank) < config.k:
            raise ValueError(f"monitor.k={config.k}: more neighbours than the {len(self.bank)} labelled images")
        if not len(self.queries):
            raise ValueError("none of the held-out images has a label: kNN has nothing to compare with")
        if bank.classes != queries.classes:
            raise ValueError(
                f"the held-out images have other classes than the training images: "
                f"{sorted(set(bank.classes) ^ set(queries.classes))[:5]}"
            )
        self.config, self.size, self.workers = config, size, workers

    def __call__(self, encoder: ResNet, device: torch.device) -> float:
        """Top-1 accuracy, 0 ... 1."""
        bank, queries = (
            extract_features(encoder, images, self.size, device, workers=self.workers)
            for images in (self.bank, self.queries)
        )
        labels = torch.from_numpy(self.bank.labels).to(device)
        c = self.config
        ranked = knn_predict(queries, bank, labels, len(self.bank.classes), c.k, c.temperature)
        return accuracy(ranked, torch.from_numpy(self.queries.labels).to(device))


class Monitor:
    """Collects on the device at every step, and reads, judges and writes every `log_every` steps."""

    def __init__(
        self,
        config: MonitorConfig,
        folder: RunFolder,
        device: torch.device,
        batch: int,
        steps: int,
        start: int,
        progress: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.folder, self.batch, self.steps = config, folder, batch, steps
        self.loss_sum = torch.zeros((), device=device, dtype=torch.float64)
        self.first_bad = torch.full((), -1, device=device, dtype=torch.int64)
        self.count, self.data_time, self.since = 0, 0.0, time.perf_counter()
        self.start, self.plateau, self.collapse = start, 0, 0
        self.said: set[str] = set()
        self.corrupt: dict[int, str] = {}
        self.knn: dict[str, float] = {}
        if progress:
            self.plateau, self.collapse = progress["plateau"], progress.get("collapse", 0)
            self.said = set(progress["said"])
            self.corrupt, self.knn = dict(progress["corrupt"]), dict(progress["knn"])
        self.bar = tqdm(total=steps, initial=start, disable=rank() != 0, unit="step", smoothing=0.05, mininterval=1.0)

    def state(self) -> dict[str, Any]:
        """What a continued run needs; builtins."""
        return {
            "plateau": self.plateau,
            "collapse": self.collapse,
            "said": sorted(self.said),
            "corrupt": dict(self.corrupt),
            "knn": dict(self.knn),
        }

    def due(self, step: int) -> bool:
        """Whether statistics are read after this step (counted from 1)."""
        return step % self.config.log_every == 0 or step == self.steps

    def observe(self, step: int, loss: Tensor, data_time: float) -> None:
        """Takes a step's loss, without waiting for the device."""
        self.loss_sum += loss
        bad = (self.first_bad < 0) & ~torch.isfinite(loss)
        self.first_bad = torch.where(bad, step, self.first_bad)
        self.count += 1
        self.data_time += data_time
        self.bar.update()

    def report(self, step: int, epoch: float, lr: float, statistics: dict[str, Tensor]) -> None:
        """Reads what was collected, writes it and says what is unusual.

        Raises:
            NonFiniteError: a loss since the last report, or the gradient norm now, is not finite.
        """
        loss = self.loss_sum / max(self.count, 1)
        tensors = [loss, *statistics.values()]
        all_mean_(tensors)
        self.check_finite(step, lr, tensors[1 + list(statistics).index("grad_norm")])
        seconds = max(time.perf_counter() - self.since, 1e-9)
        values = {"loss": float(loss)} | {name: float(t) for name, t in statistics.items()}
        values |= {
            "lr": lr,
            "images_per_second": self.count * self.batch / seconds,
            "data_share": self.data_time / seconds,
        }
        self.folder.add_metrics(step, epoch, values)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.3f} (chance {values['chance']:.3f}), "
            f"{values['images_per_second']:.0f} img/s, epoch {epoch:.2f}"
        )
        self._judge(step, values)
        self.loss_sum.zero_()
        self.count, self.data_time, self.since = 0, 0.0, time.perf_counter()

    def check_finite(self, step: int, lr: float, grad_norm: Tensor | None = None) -> None:
        """Raises NonFiniteError where a loss so far, or the given gradient norm, is not finite, on any rank."""
        bad_step = int(self.first_bad)
        bad_norm = grad_norm is not None and not bool(torch.isfinite(grad_norm))
        if any_rank(bad_step >= 0 or bad_norm, self.loss_sum.device):
            where = f"loss at step {bad_step}" if bad_step >= 0 else f"grad_norm at step {step}"
            raise NonFiniteError(
                f"{where} is not finite (lr {lr:.3g}); the last good checkpoint is kept. "
                "Lower --optim.base_lr, lengthen --optim.warmup, or try --optim.precision fp32"
            )

    def _judge(self, step: int, values: dict[str, float]) -> None:
        near = abs(values["loss"] - values["chance"]) <= PLATEAU_BAND * values["chance"]
        self.plateau = self.plateau + self.count if near and values.get("queue_fill", 1) >= 1 else 0
        if self.plateau >= self.config.plateau:
            self.warn(
                "plateau",
                f"step {step}: the loss {values['loss']:.3f} has been within 1 % of chance level "
                f"{values['chance']:.3f} for {self.plateau} steps: nothing is learnt. Lower --optim.base_lr or "
                "look at the views",
            )
        # The embeddings of an untrained network are all alike; only when they stay so has it collapsed.
        self.collapse = self.collapse + self.count if values.get("embedding_std", 1) < COLLAPSE else 0
        if self.collapse >= self.config.plateau:
            self.warn(
                "collapse",
                f"step {step}: the embedding std, now {values['embedding_std']:.3f} (healthy: 0.5 to 1), has been "
                f"below {COLLAPSE} for {self.collapse} steps: all embeddings are nearly the same. Lower "
                "--optim.base_lr",
            )
        # The first steps wait for the loaders to start.
        if values["data_share"] > DATA_SHARE_WARNING and step - self.start > 2 * self.config.log_every:
            self.warn(
                "data",
                f"step {step}: {values['data_share']:.0%} of the time is spent waiting for images; raise "
                "--data.workers or put the images on a faster disk",
            )

    def warn(self, kind: str, text: str) -> None:
        """Says a warning once a run."""
        if kind not in self.said:
            self.said.add(kind)
            say(f"warning: {text}")

    def add_corrupt(self, found: dict[int, str], images: int, allowed_share: float) -> None:
        """Names each unreadable image once; raises ValueError when there are more than the share allows."""
        for number, reason in found.items():
            if number not in self.corrupt:
                self.corrupt[number] = reason
                tqdm.write(f"warning: image skipped: {reason}")
        allowed = int(np.ceil(allowed_share * images))
        if len(self.corrupt) > allowed:
            raise ValueError(
                f"{len(self.corrupt)} of {images} images cannot be read, more than data.max_corrupt="
                f"{allowed_share} allows; the last: {list(self.corrupt.values())[-1]}"
            )

    def measure_knn(self, step: int, epoch: float, evaluate: Callable[[], float]) -> float:
        """Runs and writes a kNN evaluation; its time does not count as training time."""
        began = time.perf_counter()
        value = evaluate()
        self.knn[str(step)] = value
        self.folder.add_metrics(step, epoch, {"knn": value})
        say(f"step {step}, epoch {epoch:.2f}: kNN {value:.2%} on held-out images")
        self.since += time.perf_counter() - began
        return value

    def close(self) -> None:
        """Ends the progress bar."""
        self.bar.close()
