"""Fine-tuning: backbone and head are trained together, with a learning rate each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from common.distributed import rank, world_size
from common.features import network_input, over_ranks, raw_features
from common.images import ImageSet
from common.knn import accuracy
from common.loaders import GlobalBatches
from common.precision import autocast_dtype
from converters import Backbone
from transfer.benchmark import Measurement, Run, read_backbone
from transfer.classification import pictures
from transfer.classification.command import base_config, feature_cache, run_folder
from transfer.classification.data import ClassData, hold_out, load_class_data
from transfer.classification.heads import best_of, load_head, metrics_of, most_likely, new_head, top1_hits
from transfer.classification.options import describe_labels, resolve_tuning
from transfer.classification.schedules import CropConfig, TuneOptim
from transfer.classification.training import DivergedError, ResumableLoop, Setting, remove_states

PROBED = 64  # test images whose features are looked at before the training


class Classifier(nn.Module):
    """A backbone with a linear head: images (n, 3, S, S) -> logits (n, C)."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, C) for images (n, 3, S, S)."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def plan(options: Namespace, seed: int, device: torch.device) -> Run:
    """Return what is measured for a seed; nothing is computed yet."""
    backbone = read_backbone(options, seed)
    base, fine_print = base_config(options, backbone, device)
    optim, crop, head = resolve_tuning(options, base["size"])
    config = base | {"labels": describe_labels(options)[0], "optim": asdict(optim), "crop": asdict(crop), "head": head}
    title = f"fine-tuning: SGD, {optim.describe()}, weight decay {optim.weight_decay:g}, "
    title += f"{crop.describe()}, {optim.describe_rates()}, last epoch"
    title += f", head from {options.head}" * bool(options.head) + fine_print
    return Run(backbone, "finetune", title, seed, config, "top1", options.out)


def load(run: Run, options: Namespace) -> ClassData:
    """Read the lists of images.

    Raises:
        ValueError: see `load_class_data`; or there are too few images to hold some out or to fill a batch, or --head is
            of another checkpoint or class map.
    """
    data, optim = load_class_data(options), TuneOptim(**options.optim.as_dict())
    if options.head:
        load_head(options.head, data.classes, run.backbone)
    fitted = hold_out(data.train.labels, run.seed)[0] if len(optim.pairs) > 1 else data.train.labels
    GlobalBatches(len(fitted), optim.batch, run.seed, 0, 0)
    return data


def evaluate(run: Run, options: Namespace, device: torch.device) -> Measurement:
    """Choose the rates, train on all labelled images, measure on the test images."""
    data = load(run, options)
    optim, crop = TuneOptim(**options.optim.as_dict()), CropConfig(**options.crop.as_dict())
    refuse_useless(run, data, options, device)
    folder, size = run_folder(run, "finetune"), run.config["size"]
    dtype = autocast_dtype(options.precision, device, size)
    setting = Setting(folder, run.seed, device, dtype, size, options.workers, options.resume)
    head = load_head(options.head, data.classes, run.backbone) if options.head else None
    chosen: dict[str, float] = {}
    if len(optim.pairs) > 1:
        tried = try_pairs(run.backbone, data, optim, crop, setting, head)
        best = best_of(tried)
        chosen = {"base_lr": best[0], "head_factor": best[1], "held_out_top1": tried[best]}
        optim = optim.only(best)
    model = tune(run.backbone, data.train, optim, crop, setting, head)
    ranked, labels = predict_all(model, data.test, setting), torch.from_numpy(data.test.labels)
    cost = {"images": float(len(data.train)), **chosen, **remove_states(folder)}
    metrics, draw = metrics_of(ranked, labels, data.classes), partial(_draw, folder, data, ranked)
    return Measurement(metrics, cost, top1_hits(ranked, labels), draw)


def refuse_useless(run: Run, data: ClassData, options: Namespace, device: torch.device) -> None:
    """Raise a ValueError where the backbone gives features that are not finite, or the same for different images."""
    network = run.backbone.build().to(device).to(memory_format=torch.channels_last)
    some = data.test.subset(np.unique(np.linspace(0, len(data.test) - 1, PROBED, dtype=np.int64)))
    replace(feature_cache(run, options, device), folder=None)(run.backbone, network, some, "some test images")


def try_pairs(
    backbone: Backbone, data: ClassData, optim: TuneOptim, crop: CropConfig, setting: Setting, head: nn.Linear | None
) -> dict[tuple[float, float], float]:
    """Return the accuracy of each pair of rates on a held-out tenth of the training images, 0 where it diverges.

    Raises:
        DivergedError: every pair diverges.
    """
    fit, held = hold_out(data.train.labels, setting.seed)
    tried: dict[tuple[float, float], float] = {}
    diverged = 0
    for pair in optim.pairs:
        at = replace(setting, folder=setting.folder / f"backbone{pair[0]:g}_head{pair[1]:g}")
        try:
            model = tune(backbone, data.train.subset(fit), optim.only(pair), crop, at, head)
        except DivergedError as error:  # on every rank at once
            tried[pair], outcome, diverged = 0.0, f"diverged ({error})", diverged + 1
        else:
            images = data.train.subset(held)
            tried[pair] = accuracy(predict_all(model, images, setting), torch.from_numpy(images.labels))
            outcome = f"{tried[pair]:.2%} of {len(images)} held-out images"
        if rank() == 0:
            print(f"lr {pair[0]:g}, head x {pair[1]:g}: {outcome}", flush=True)
    if diverged == len(tried):
        rates = "/".join(f"{lr:g}" for lr in optim.base_lr)
        raise DivergedError(f"all {diverged} pairs of rates diverged, base lr {rates}; lower --optim.base_lr")
    return tried


def tune(
    backbone: Backbone, images: ImageSet, optim: TuneOptim, crop: CropConfig, setting: Setting,
    start: nn.Linear | None = None,
) -> Classifier:  # fmt: skip
    """Train a backbone's network and a head on labelled images.

    Args:
        backbone: the initial weights; it stays as it is.
        images: see `ResumableLoop`.
        optim: hyper-parameters, with one pair of rates.
        crop: the training views.
        setting: where and how.
        start: the initial head, in place of a random one.

    Returns:
        The model after the last epoch, in evaluation mode.

    Raises:
        DivergedError: the loss is not finite.
        ValueError: the state in the folder is of other options.
    """
    ((lr, factor),) = optim.pairs
    head = new_head(backbone.feature_dim, len(images.classes), setting.seed, start)
    model = Classifier(backbone.build(), head).to(setting.device).to(memory_format=torch.channels_last)
    if world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    peaks = [optim.scaled(lr), optim.scaled(lr) * factor]
    groups = [
        {"params": list(part.parameters()), "lr": peak, "peak": peak}
        for part, peak in zip((model.backbone, model.head), peaks, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, momentum=optim.momentum, weight_decay=optim.weight_decay)
    scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.dtype == torch.float16)
    loop = ResumableLoop(images, optim, crop, setting, optimizer, model=model, scaler=scaler)
    forward: Callable[[Tensor], Tensor] = model if world_size() == 1 else DistributedDataParallel(model)
    model.train()
    for batch in loop:
        with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype is not None):
            logits = forward(network_input(batch.q, setting.device))
        loss = F.cross_entropy(logits.float(), batch.labels.to(setting.device))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loop.losses = loss.detach()[None]
    return model.eval()


def predict_all(model: nn.Module, images: ImageSet, setting: Setting) -> Tensor:
    """Return the five most likely classes of the centre views, the likeliest first: (N, 5 or C) int64 on the CPU.

    Each rank computes a part.
    """

    def compute(part: ImageSet) -> Tensor:
        return most_likely(
            raw_features(model, part, setting.size, setting.device, workers=setting.workers, dtype=setting.dtype)
        )

    return over_ranks(images, compute, setting.device).cpu()


def _draw(folder: Path, data: ClassData, ranked: Tensor) -> Sequence[Path]:
    path = folder / "confusion.png"
    pictures.confusion(path, data.test.labels, ranked[:, 0].numpy(), data.classes, "fine-tuned")
    return [path]
