"""Linear classification on a frozen backbone: heads on cached features, or trained on random views.

Of heads trained on random views there may be one, or many with different rates at once: the backbone, which takes
nearly all the time, runs once for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from jsonargparse import Namespace
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from common.distributed import all_mean_, rank, world_size
from common.features import FeatureExtractor, over_ranks
from common.files import write_atomically
from common.images import ImageSet
from common.knn import accuracy
from common.loaders import GlobalBatches
from transfer.benchmark import Measurement, Run, read_backbone
from transfer.classification import logistic, pictures
from transfer.classification.command import base_config, feature_cache, run_folder
from transfer.classification.data import ClassData, hold_out, load_class_data
from transfer.classification.features import FeatureCache
from transfer.classification.heads import (
    best_of,
    load_head,
    metrics_of,
    new_head,
    per_class,
    predict,
    save_head,
    top1_hits,
)
from transfer.classification.options import resolve_linear
from transfer.classification.schedules import CACHED, CropConfig, HeadOptim
from transfer.classification.training import ResumableLoop, Setting, remove_states
from transfer.own_data.multilabel import is_table

KNOWN_RATES = (0.01, 100.0)  # base rates seen in the literature for heads on pooled ResNet features


def plan(options: Namespace, seed: int, device: torch.device) -> Run:
    """Return what is measured for a seed; nothing is computed yet."""
    backbone = read_backbone(options, seed)
    base, fine_print = base_config(options, backbone, device)
    details, how = resolve_linear(options, base["size"])
    config = base | {"mode": options.mode, "store": options.store} | details
    title = f"linear, {options.mode}: {how}{fine_print}"
    several = is_table(options.data)
    title += ", several labels per image: one logistic regression per class" * several
    return Run(backbone, "linear", title, seed, config, "mAP" if several else "top1", options.out, ("scikit-learn",))


def load(run: Run, options: Namespace) -> ClassData:
    """Read the lists of images.

    Raises:
        ValueError: see `load_class_data`; or there are too few images to hold some out or to fill a batch, or --head is
            of another checkpoint or class map.
    """
    data, optim = load_class_data(options), HeadOptim(**options.optim.as_dict())
    if options.head:
        load_head(options.head, data.classes, run.backbone)
    chosen = len(options.penalties) if options.mode == CACHED else len(optim.heads)
    fitted = hold_out(data.train.labels, run.seed)[0] if chosen > 1 else data.train.labels
    if options.mode != CACHED:
        GlobalBatches(len(fitted), optim.batch, run.seed, 0, 0)
    return data


def evaluate(run: Run, options: Namespace, device: torch.device) -> Measurement:
    """Train and test a head; write it and the accuracy of each class into the run folder."""
    data = load(run, options)
    network = run.backbone.build().to(device).to(memory_format=torch.channels_last)
    extract, folder = feature_cache(run, options, device), run_folder(run, options.mode)

    def of_test(part: ImageSet) -> Tensor:
        return extract(run.backbone, network, part, data.test_name)

    features = over_ranks(data.test, of_test, device).cpu()  # what cannot be measured is not trained
    if options.mode == CACHED:
        head, chosen = cached_head(run, data, options.penalties, extract, network)
    else:
        setting = Setting(folder, run.seed, device, extract.dtype, extract.size, options.workers, options.resume)
        head, chosen = online_head(run, data, options, extract, network, setting)
    ranked, labels = predict(head, features), torch.from_numpy(data.test.labels)
    compared = run.backbone.compare(network.state_dict())
    if rank() == 0:
        print(f"the backbone is unchanged: {compared} tensors equal those of the checkpoint")
        save_head(folder / "head.pth", head, data.classes, run.backbone)
        table = pd.Series(per_class(ranked, labels, data.classes), name="top1").rename_axis("class")
        write_atomically(folder / "per_class.csv", table.to_csv)
    cost = {"images": float(len(data.train) + len(data.test)), **chosen, **remove_states(folder)}
    draw = partial(_draw, folder, run, data, ranked, features)
    return Measurement(metrics_of(ranked, labels, data.classes), cost, top1_hits(ranked, labels), draw)


def cached_head(
    run: Run, data: ClassData, penalties: Sequence[float], extract: FeatureCache, network: nn.Module
) -> tuple[nn.Linear, dict[str, float]]:
    """Return a head fitted by logistic regression on the features of the centre views, and what was chosen."""
    held = torch.from_numpy(hold_out(data.train.labels, run.seed)[1]) if len(penalties) > 1 else torch.arange(0)
    features = extract(run.backbone, network, data.train, data.train_name)
    labels = torch.from_numpy(data.train.labels)
    head, penalty, tried = logistic.fit(
        features, labels, len(data.classes), held, extract.device, penalties, tqdm.write
    )
    return head, {"penalty": penalty} | ({"held_out_top1": tried[penalty]} if tried else {})


def online_head(
    run: Run, data: ClassData, options: Namespace, extract: FeatureCache, network: nn.Module, setting: Setting
) -> tuple[nn.Linear, dict[str, float]]:
    """Return a head trained on random views, the best of several on held-out images, and what was chosen."""
    optim, crop = HeadOptim(**options.optim.as_dict()), CropConfig(**options.crop.as_dict())
    if rank() == 0:
        print(describe_rates(optim))
    start = load_head(options.head, data.classes, run.backbone) if options.head else None
    width = run.backbone.feature_dim
    if len(optim.heads) == 1:
        return train_heads(network, width, data.train, optim, crop, setting, start)[0], {}
    fit, held = hold_out(data.train.labels, run.seed)
    heads = train_heads(network, width, data.train.subset(fit), optim, crop, setting, start)
    images = data.train.subset(held)
    features = replace(extract, folder=None)(run.backbone, network, images, "the held-out tenth")
    labels = torch.from_numpy(images.labels)
    tried = {pair: accuracy(predict(head, features, 1), labels) for pair, head in zip(optim.heads, heads, strict=True)}
    if rank() == 0:
        for (lr, decay), value in tried.items():
            tqdm.write(f"base lr {lr:g}, weight decay {decay:g}: {value:.2%} of {len(images)} held-out images")
    best = best_of(tried)
    head = heads[optim.heads.index(best)]
    return head, {"held_out_top1": tried[best], "base_lr": best[0], "weight_decay": best[1]}


def train_heads(
    network: nn.Module, width: int, images: ImageSet, optim: HeadOptim, crop: CropConfig, setting: Setting,
    start: nn.Linear | None = None,
) -> list[nn.Linear]:  # fmt: skip
    """Train one head for each rate and weight decay on the features of random views.

    Args:
        network: the backbone, on the device; it runs in evaluation mode and stays as it is.
        width: of its features, D.
        images: see `ResumableLoop`.
        optim: hyper-parameters.
        crop: the views.
        setting: where and how.
        start: the initial head, in place of random ones.

    Returns:
        The heads after the last epoch, in the order of `optim.heads`.

    Raises:
        DivergedError: no head's loss is finite.
        ValueError: the state in the folder is of other options.
    """
    heads = [new_head(width, len(images.classes), setting.seed, start).to(setting.device) for _ in optim.heads]
    modules = nn.ModuleList(heads)
    optimizer = heads_optimizer(modules, optim)
    loop = ResumableLoop(images, optim, crop, setting, optimizer, heads=modules)
    with FeatureExtractor(network, setting.device, setting.dtype) as run:
        for batch in loop:
            loop.losses = step_heads(modules, optimizer, run(batch.q), batch.labels.to(setting.device))
    return heads


def heads_optimizer(heads: nn.ModuleList, optim: HeadOptim) -> torch.optim.Optimizer:
    """Return an optimiser with one group per head; `peak` is its rate before the schedule lowers it."""
    groups = [
        {"params": list(head.parameters()), "lr": optim.scaled(lr), "peak": optim.scaled(lr), "weight_decay": decay}
        for head, (lr, decay) in zip(heads, optim.heads, strict=True)
    ]
    if optim.optimizer == "lars":
        return Lars(groups, momentum=optim.momentum, always_adapt=True)
    return torch.optim.SGD(groups, momentum=optim.momentum)


def step_heads(heads: nn.ModuleList, optimizer: torch.optim.Optimizer, features: Tensor, labels: Tensor) -> Tensor:
    """Make one step of all heads on features (n, D) and labels (n,); return their losses, (heads,)."""
    losses = torch.stack([F.cross_entropy(head(features), labels) for head in heads])
    optimizer.zero_grad()
    losses.sum().backward()  # each head gets the gradient of its own loss only
    all_mean_([p.grad for p in heads.parameters() if p.grad is not None])
    optimizer.step()
    return losses.detach()


def describe_rates(optim: HeadOptim) -> str:
    """Return base and actual rates for the screen, and a warning for base rates outside the known range."""
    pairs = ", ".join(f"{lr:g} -> {optim.scaled(lr):g}" for lr in optim.base_lr)
    text = f"base lr per 256 images -> lr at batch {optim.batch} over {world_size()} processes: {pairs}"
    low, high = KNOWN_RATES
    if optim.optimizer == "sgd" and not all(low <= lr <= high for lr in optim.base_lr):
        text += f"\nwarning: base rates for un-normalised features lie between {low:g} and {high:g}"
    return text


def _draw(folder: Path, run: Run, data: ClassData, ranked: Tensor, features: Tensor) -> Sequence[Path]:
    name = Path(run.backbone.source.path).parent.name or run.backbone.source.path
    paths = [folder / "confusion.png", folder / "features.png"]
    pictures.confusion(paths[0], data.test.labels, ranked[:, 0].numpy(), data.classes, name)
    pictures.feature_map(paths[1], features, data.test.labels, data.classes, name)
    return [path for path in paths if path.is_file()]
