"""What a run measures and logs: metrics, warnings, kNN on held-out images, messages at its start and end."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.distributed import all_mean_, any_rank, rank, world_size
from common.files import write_text
from common.images import UNLABELLED, source_path
from common.loaders import add_corrupt
from common.run_folder import RunFolder
from pretrain.config import CROSS_ENTROPY
from pretrain.data import Knn, TrainingData
from pretrain.engine import Training

DATA_TIME_WARNING = 0.2
COLLAPSE = 0.1  # embedding_std of a healthy run lies between 0.5 and 1
PLATEAU_BAND = 0.01
MIN_LOSS_SCALE = 1.0  # below it, gradients overflow fp16 without any scaling
ROOT = Path(__file__).resolve().parents[1]
SUMMARY = "summary.json"  # in the folder of a run that has finished
T = TypeVar("T")


class NonFiniteError(RuntimeError):
    """The loss or the gradient is no longer a number."""


def log(text: str) -> None:
    """Print a line above the progress bar, on rank 0."""
    if rank() == 0:
        tqdm.write(text)


class Monitor:
    """Collects on the device at every step; reads, judges and writes every `log_every` steps.

    Args:
        t: the training, at the step where it starts or continues.
        folder: started run folder.
        progress: `state()` of the run that is continued.
    """

    def __init__(self, t: Training, folder: RunFolder, progress: dict[str, Any] | None = None) -> None:
        self.t, self.config, self.folder, self.start = t, t.config.monitor, folder, t.step
        self.loss_sum = torch.zeros((), device=t.device, dtype=torch.float64)
        self.first_bad = torch.full((), -1, device=t.device, dtype=torch.int64)
        self.count, self.data_time, self.since, self.lr = 0, 0.0, time.perf_counter(), 0.0
        progress = progress or {}
        self.plateau: int = progress.get("plateau", 0)
        self.collapse: int = progress.get("collapse", 0)
        self.warned: set[str] = set(progress.get("warned", ()))
        self.corrupt: dict[int, str] = dict(progress.get("corrupt", {}))
        self.knn: dict[str, float] = dict(progress.get("knn", {}))
        self.bar = tqdm(
            total=t.steps, initial=t.step, disable=rank() != 0, unit="step", smoothing=0.05, mininterval=1.0
        )

    def state(self) -> dict[str, Any]:
        """Return what a continued run needs; builtins."""
        return {
            "plateau": self.plateau,
            "collapse": self.collapse,
            "warned": sorted(self.warned),
            "corrupt": dict(self.corrupt),
            "knn": dict(self.knn),
        }

    def due(self, step: int) -> bool:
        """Return whether statistics are read after this step (counted from 1)."""
        return step % self.config.log_every == 0 or step == self.t.steps

    def time_loading(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches and measure how long each is waited for."""
        began = time.perf_counter()
        for batch in batches:
            self.data_time += time.perf_counter() - began
            yield batch
            began = time.perf_counter()

    def observe(self, lr: float, loss: Tensor) -> None:
        """Collect the loss of the step that was just done, without waiting for the device."""
        self.lr = lr
        self.loss_sum += loss
        bad = (self.first_bad < 0) & ~torch.isfinite(loss)
        self.first_bad.masked_fill_(bad, self.t.step)
        self.count += 1
        self.bar.update()

    def report(self, statistics: dict[str, Tensor]) -> None:
        """Read what was collected, write it and warn of what is unusual.

        Raises:
            NonFiniteError: a loss since the last report or the gradient norm now is not finite, other than in an fp16
                step that was skipped; or the loss scale has collapsed.
        """
        loss = self.loss_sum / max(self.count, 1)
        tensors = [loss, *statistics.values()]
        all_mean_(tensors)
        values = dict(zip(("loss", *statistics), (float(t) for t in tensors), strict=True))
        self.check_finite()
        if "loss_scale" in values and not np.isfinite(values["grad_norm"]):  # skipped: the weights are as before
            del values["grad_norm"]
        self._check_gradient(values)
        seconds = max(time.perf_counter() - self.since, 1e-9)
        values |= {
            "lr": self.lr,
            "images_per_second": self.count * self.t.config.optim.batch / seconds,
            "data_time_fraction": self.data_time / seconds,
        }
        self.folder.add_metrics(self.t.step, self.t.epoch, values)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.3f} (chance {values['chance']:.3f}), "
            f"{values['images_per_second']:.0f} img/s, epoch {self.t.epoch:.2f}"
        )
        self._judge(values)
        self.loss_sum.zero_()
        self.count, self.data_time, self.since = 0, 0.0, time.perf_counter()

    def check_finite(self) -> None:
        """Raise NonFiniteError where a loss so far is not finite, on any rank."""
        bad_step = int(self.first_bad)
        if any_rank(bad_step >= 0, self.loss_sum.device):
            where = f"at step {bad_step}" if bad_step >= 0 else "on another rank"
            raise self._non_finite(f"loss {where} is not finite")

    def _check_gradient(self, values: dict[str, float]) -> None:
        """Raise NonFiniteError for a bad gradient norm or loss scale; they are equal on all ranks."""
        if not np.isfinite(values.get("grad_norm", 0.0)):
            raise self._non_finite(f"grad_norm at step {self.t.step} is not finite")
        if values.get("loss_scale", MIN_LOSS_SCALE) < MIN_LOSS_SCALE:
            raise self._non_finite(
                f"the fp16 loss scale has collapsed to {values['loss_scale']:g} at step {self.t.step}, after "
                f"{values['skipped_steps']:.0f} skipped steps: the gradient is not finite"
            )

    def _non_finite(self, what: str) -> NonFiniteError:
        return NonFiniteError(
            f"{what} (lr {self.lr:.3g}); the last good checkpoint is kept. "
            "Lower --optim.base_lr, lengthen --optim.warmup, or try --optim.precision fp32"
        )

    def _judge(self, values: dict[str, float]) -> None:
        """Warn of a loss at chance level, collapsed embeddings and slow loading."""
        step = self.t.step
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
        if values["data_time_fraction"] > DATA_TIME_WARNING and step - self.start > 2 * self.config.log_every:
            self.warn(
                "data",
                f"step {step}: {values['data_time_fraction']:.0%} of the time is spent waiting for images; raise "
                "--data.workers or put the images on a faster disk",
            )

    def warn(self, kind: str, text: str) -> None:
        """Log a warning, once a run for each kind."""
        if kind not in self.warned:
            self.warned.add(kind)
            log(f"warning: {text}")

    def add_corrupt(self, found: dict[int, str], images: int, allowed_fraction: float) -> None:
        """Name each unreadable image once; see `common.loaders.add_corrupt`."""
        add_corrupt(self.corrupt, found, images, allowed_fraction, f"data.max_corrupt={allowed_fraction}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of what follows out of the training speed."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def evaluate(self, knn: Knn | None) -> None:
        """Measure kNN, where there are held-out images, write and log it."""
        if knn is None:
            return
        t = self.t
        with self.paused():
            t.average_statistics()
            accuracy = knn(t.model.encoder_q, t.device)
        self.knn[str(t.step)] = accuracy
        self.folder.add_metrics(t.step, t.epoch, {"knn": accuracy})
        log(f"step {t.step}, epoch {t.epoch:.2f}: kNN {accuracy:.2%} on held-out images")

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()


def log_start(t: Training, data: TrainingData, folder: Path) -> None:
    """Log what is about to run."""
    c, images, labelled = t.config, data.images, int((data.kept.labels != UNLABELLED).sum())
    parameters = sum(p.numel() for p in t.model.encoder_q.parameters())
    contrastive = c.model.loss != CROSS_ENTROPY
    log(f"recipe {c.recipe or 'none (defaults)'}, {c.views.summary}")
    log(
        f"{c.model.arch} ({parameters / 1e6:.1f} M parameters with its head), "
        f"loss {c.model.loss}" + (f", T {c.model.temperature:g}" if contrastive else "")
    )
    log(
        f"{len(images)} training images, {labelled} keep their label ({labelled / len(images):.1%}, "
        f"{len(images.classes)} classes, list {data.kept.sha256[:12]})"
    )
    log(f"training set: {images.describe()}")
    log(
        f"base lr {c.optim.base_lr:g} per 256 images x batch {c.optim.batch} = lr {c.optim.lr:g}; "
        f"{t.steps} steps, {c.optim.epochs:g} epochs"
    )
    log(
        f"{t.device} x {world_size()}, {t.dtype or 'fp32'}, {t.compiled}, {c.model.bn_groups} batch-norm groups of "
        f"{c.optim.batch // c.model.bn_groups} images" + (", keys shuffled between them" if contrastive else "")
    )
    if contrastive and c.model.bn_groups == 1:
        log("warning: one batch-norm group: queries and keys share statistics, which the network can exploit")
    if contrastive and c.model.queue_size >= len(images):
        masked = c.model.mask_same_image != "never"
        fate = "are left out of the loss" if masked else "count as negatives of unlabelled queries"
        log(
            f"warning: the queue ({c.model.queue_size}) holds the whole data set ({len(images)} images): old keys of "
            f"a query's own image {fate}; --model.queue_size {2 ** int(np.log2(max(len(images) / 4, 1)))} would suit "
            "better"
        )
    log(f"run folder {folder}" + (f", continued at step {t.step}" if t.step else ""))


def finish(t: Training, knn: dict[str, float], folder: Path, meta: dict[str, Any], seconds: float) -> None:
    """Log how a run ended and what to do next; where it is complete, write summary.json."""
    if t.step < t.steps:
        last = folder / "last.pth"
        log(f"stopped at step {t.step} of {t.steps}; saved in {last}. The same command continues from there.")
        return
    summary = {**meta, "seconds_since_last_start": round(seconds, 1), "skipped_steps": int(t.skipped_steps), "knn": knn}
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    log_done(t, knn, folder)


def log_done(t: Training, knn: dict[str, float], folder: Path) -> None:
    """Log the results of a finished run and the commands that use its checkpoint."""
    last, values = folder / "last.pth", list(knn.values())
    skipped = f" ({int(t.skipped_steps)} skipped on fp16 overflow)" if t.skipped_steps else ""
    log(f"done: {t.steps} steps{skipped}, checkpoint {last}")
    if values:
        log(f"kNN on held-out images: {values[0]:.2%} before, {values[-1]:.2%} after")
    python, ckpt = this_python(), shlex.quote(str(last))
    measure, convert = (
        shlex.quote(os.path.relpath(ROOT / name)) for name in ("transfer/knn.py", "converters/convert.py")
    )
    data = data_hint(t.config.data.sources)
    log(f"next: {python} {measure} --ckpt {ckpt}{data}    or    {python} {convert} {ckpt} --to detectron2")


def data_hint(sources: Sequence[str]) -> str:
    """Return the options that name a user's data for a benchmark; "" for those of the project.

    The images of a pre-training are not tested on: a test beside train/ is named, else TEST_IMAGES stands for one.
    Where no source has labels, LABELLED_IMAGES stands for one that has.
    """
    labelled = [source for source in sources if not _is_flat(source)]
    if sources[0].startswith("fashion"):
        return ""
    if not labelled:
        return " --data LABELLED_IMAGES --val-fraction 0.2"
    first = labelled[0]
    path = source_path(first)
    if path.name == "train" and any((path.parent / name).is_dir() for name in ("val", "test")):
        return f" --data {shlex.quote(str(path.parent))}"
    return f" --data {shlex.quote(first)} --test TEST_IMAGES"


def _is_flat(source: str) -> bool:
    """Return whether a source is a folder of images without labels."""
    path = source_path(source)
    return source.startswith("flat:") or (path.is_dir() and not any(child.is_dir() for child in path.iterdir()))


def this_python() -> str:
    """Return what to type for the running Python: `python` where that is it, else its path from here."""
    here, found = Path(sys.executable), shutil.which("python")
    if found and Path(found) == here:
        return "python"
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)
