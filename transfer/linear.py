"""Linear classification on the frozen trunk of a checkpoint.

python transfer/linear.py --ckpt runs/fashion/last.pth                      minutes: features once, then L-BFGS
python transfer/linear.py --ckpt X --data /data/imagenet --mode moco        the papers' protocol
python transfer/linear.py --ckpt X --recipe fashion_linear_moco             a recipe; options win over it

Modes: `cached`: logistic regression on features that are computed once, the penalty chosen on a held-out tenth of
train. `moco`: SGD on random crops, base learning rate 30 per 256 images, 100 epochs. (30 is no slip: pooled features
are not normalised, MoCo's are small, and so are the gradients of its head; larger features want less.) `lars`:
SimSiam's, for batches of thousands. `sweep`: many heads with other rates and weight decays on one pass of the trunk,
chosen on a held-out tenth of train. Figures are those of the last epoch on the test images; afterwards every tensor of
the trunk is compared with the checkpoint.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn
from tqdm import tqdm

from common.distributed import rank, start, world_size
from common.files import write_atomically
from common.precision import autocast_dtype
from transfer.benchmark import Measurement, Run, read_checkpoint, run_benchmark
from transfer.classification import logistic, options, pictures
from transfer.classification.data import ClassData, hold_out, load_class_data, source_names
from transfer.classification.evaluation import evaluate_seeds
from transfer.classification.features import Extraction
from transfer.classification.heads import best_of, head_hash, load_head, per_class, predict, save_head, scores
from transfer.classification.loop import Work, finish
from transfer.classification.online import MODES, HeadOptim, rates_in_words, train_heads
from transfer.classification.schedule import CropConfig

CACHED = "cached"


def parser(mode: str = "moco") -> ArgumentParser:
    """The options; those of --optim start from the mode's."""
    p = options.classification_parser("linear", __doc__)
    p.add_argument("--mode", choices=[CACHED, *MODES], default=CACHED, help="how the head is trained")
    p.add_class_arguments(HeadOptim, "optim", default=asdict(MODES.get(mode, HeadOptim())))
    p.add_class_arguments(CropConfig, "crop")
    p.add_argument(
        "--penalties", type=list[float], default=list(logistic.PENALTIES), help="of mode `cached`, to choose from"
    )
    p.add_argument("--head", type=Path | None, help="a head.pth to start from (all modes but `cached`)")
    p.add_argument("--resume", action="store_true", help="go on after the last whole epoch of the run")
    return p


def parse(arguments: list[str]) -> Namespace:
    """Command line -> options, the mode's own defaults below a recipe and the command line."""
    return options.parse(parser(options.parse(parser(), arguments).mode), arguments)


def plan(o: Namespace, seed: int, device: torch.device) -> Run:
    """What is measured for a seed, before anything is computed."""
    backbone = read_checkpoint(o.ckpt, seed)
    size, dtype = options.view_size(o, backbone), autocast_dtype(o.precision, device)
    train, test = source_names(o)
    config: dict[str, Any] = {
        "mode": o.mode,
        "data": train,
        "test": test,
        "size": size,
        "precision": str(dtype or torch.float32),
    }
    config |= {"store": o.store} | options.label_options(o)
    how = cached_plan(o, config) if o.mode == CACHED else online_plan(o, config, size)
    labels = options.labels_in_words(o)
    protocol = f"linear, {o.mode}: {how}" + f", {labels}" * bool(labels) + f"; {options.fine_print(o, size, dtype)}"
    return Run(backbone, "linear", protocol, seed, config, "top1", o.out, ("scikit-learn",))


def cached_plan(o: Namespace, config: dict[str, Any]) -> str:
    """How mode `cached` trains, in words; its options go into `config`."""
    if not o.penalties or min(o.penalties) < 0:
        raise ValueError(f"--penalties {o.penalties}: one or more numbers, 0 or above")
    if o.head is not None:
        raise ValueError(f"--head {o.head}: --mode cached has one minimum, wherever it starts; use another mode")
    config["penalties"] = sorted(o.penalties)
    if len(o.penalties) == 1:
        return f"logistic regression on centre views, L-BFGS, penalty {o.penalties[0]:g}"
    return "logistic regression on centre views, L-BFGS, penalty chosen on a held-out tenth of train"


def online_plan(o: Namespace, config: dict[str, Any], size: int) -> str:
    """How the other modes train, in words; their options go into `config`."""
    optim, crop = HeadOptim(**o.optim.as_dict()), CropConfig(**o.crop.as_dict())
    crop.view(size)
    config |= {"optim": asdict(optim), "crop": asdict(crop), "head": head_hash(o.head)}
    rates, decays = ("/".join(f"{value:g}" for value in values) for values in (optim.base_lr, optim.weight_decay))
    how = f"{optim.optimizer.upper()}, base lr {rates}, " + f"weight decay {decays}, " * any(optim.weight_decay)
    how += f"{optim.in_words()}, {crop.in_words()}, last epoch"
    if len(optim.heads) > 1:
        how += f", best of {len(optim.heads)} heads on a held-out tenth of train, fitted on 90 % of train"
    return how + f", head from {o.head}" * bool(o.head)


def evaluate(o: Namespace) -> None:
    """Measures all seeds and says the result."""
    options.require_data(o)
    device = start(o.device)
    if world_size() > 1 and o.mode == CACHED:
        raise ValueError("--mode cached runs in one process; the other modes use many")
    evaluate_seeds(o, device, plan, lambda run: measure_one(run, load_class_data(o), o, device))


def measure_one(run: Run, data: ClassData, o: Namespace, device: torch.device) -> Measurement:
    """Trains and tests one head; leaves it and its classes' accuracies in the run folder."""
    network = run.backbone.build().to(device).to(memory_format=torch.channels_last)
    extract = Extraction(run.config["size"], device, o.precision, options.STORES[o.store], o.cache, o.workers)
    folder = options.run_folder(run, o.mode)
    if o.mode == CACHED:
        head, chosen = cached_head(run, data, o, extract, network)
    else:
        head, chosen = online_head(run, data, o, extract, network, folder)
    features = extract(run.backbone, network, data.test, data.test_name)
    ranked, labels = predict(head, features), torch.from_numpy(data.test.labels)
    compared = run.backbone.compare(network.state_dict())
    if rank() == 0:
        print(f"the trunk is unchanged: {compared} tensors equal those of the checkpoint")
        save_head(folder / "head.pth", head, data.classes, run.backbone)
        table = pd.Series(per_class(ranked, labels, data.classes), name="top1").rename_axis("class")
        write_atomically(folder / "per_class.csv", table.to_csv)
    cost = {"images": float(len(data.train) + len(data.test)), **chosen, **finish(folder)}
    hits = {"top1": (ranked[:, 0] == labels).numpy()}
    metrics = scores(ranked, labels, data.classes)
    return Measurement(metrics, cost, hits, lambda: draw(folder, run, data, ranked, features))


def cached_head(
    run: Run, data: ClassData, o: Namespace, extract: Extraction, network: nn.Module
) -> tuple[nn.Linear, dict[str, float]]:
    """Logistic regression on the features of the centre views; returns the head and what was chosen."""
    choice = len(o.penalties) > 1
    held = torch.from_numpy(hold_out(data.train.labels, run.seed)[1]) if choice else torch.arange(0)
    features = extract(run.backbone, network, data.train, data.train_name)
    labels = torch.from_numpy(data.train.labels)
    head, penalty, tried = logistic.fit(
        features, labels, len(data.classes), held, extract.device, o.penalties, tqdm.write
    )
    return head, {"penalty": penalty} | ({"held_out_top1": tried[penalty]} if tried else {})


def online_head(
    run: Run, data: ClassData, o: Namespace, extract: Extraction, network: nn.Module, folder: Path
) -> tuple[nn.Linear, dict[str, float]]:
    """The head, or the best of several on held-out images, trained on random views; and what was chosen."""
    optim, crop = HeadOptim(**o.optim.as_dict()), CropConfig(**o.crop.as_dict())
    if rank() == 0:
        print(rates_in_words(optim))
    work = Work(folder, run.seed, extract.device, extract.dtype, extract.size, o.workers, o.resume)
    first = load_head(o.head, data.classes, run.backbone) if o.head else None
    width = run.backbone.feature_dim
    if len(optim.heads) == 1:
        return train_heads(network, width, data.train, optim, crop, work, first)[0], {}
    fit, held = hold_out(data.train.labels, run.seed)
    heads = train_heads(network, width, data.train.subset(fit), optim, crop, work, first)
    held_images = data.train.subset(held)
    features = replace(extract, cache=None)(run.backbone, network, held_images, "the held-out tenth")
    labels = torch.from_numpy(held_images.labels)
    tried = {pair: accuracy_on(head, features, labels) for pair, head in zip(optim.heads, heads, strict=True)}
    if rank() == 0:
        for (lr, decay), value in tried.items():
            tqdm.write(f"base lr {lr:g}, weight decay {decay:g}: {value:.2%} of held-out images")
    best = best_of(tried)
    head = heads[optim.heads.index(best)]
    return head, {"held_out_top1": tried[best], "base_lr": best[0], "weight_decay": best[1]}


def accuracy_on(head: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy on features (N, D) with labels (N,)."""
    return float((predict(head, features, 1)[:, 0] == labels).double().mean())


def draw(folder: Path, run: Run, data: ClassData, ranked: Tensor, features: Tensor) -> list[Path]:
    """Confusion matrix and map of the test features."""
    name = Path(run.backbone.source.path).parent.name or run.backbone.source.path
    pictures.confusion(folder / "confusion.png", data.test.labels, ranked[:, 0].numpy(), data.classes, name)
    pictures.feature_map(folder / "features.png", features, data.test.labels, data.classes, name)
    return [path for path in (folder / "confusion.png", folder / "features.png") if path.is_file()]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the result; return 0, or 2 for a user's mistake."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_benchmark("linear", lambda: evaluate(parse(given)))


if __name__ == "__main__":
    sys.exit(main())
