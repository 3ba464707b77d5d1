"""Fine-tuning of a whole checkpoint on few labels, or all: semi-supervised classification.

python transfer/finetune.py --ckpt runs/fashion/last.pth --recipe fashion_finetune
python transfer/finetune.py --ckpt X --recipe imagenet_finetune_10percent --labels.list 10percent.txt
python transfer/finetune.py --ckpt X --data /data/birds --labels.ratio 0.1 --head runs/transfer/.../head.pth

Which labels are used is --labels.ratio with a seed, or --labels.list (SimCLR's lists work as they are): the very code
of pre-training. Trunk and head have learning rates of their own; of several pairs one is chosen on a held-out tenth of
the labelled images, then training is done once more on all of them. Figures are those of the last epoch on the test
images.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import nn

from common.distributed import rank, start, world_size
from common.images import ImageSet
from common.precision import autocast_dtype
from transfer.benchmark import Measurement, Run, read_checkpoint, run_benchmark
from transfer.classification import options, pictures
from transfer.classification.data import ClassData, hold_out, load_class_data, source_names
from transfer.classification.evaluation import evaluate_seeds
from transfer.classification.heads import best_of, head_hash, load_head, scores
from transfer.classification.loop import Diverged, Work, finish
from transfer.classification.schedule import CropConfig
from transfer.classification.tuning import TuneOptim, predict_all, tune


def parser() -> ArgumentParser:
    """The options."""
    p = options.classification_parser("finetune", __doc__)
    p.set_defaults({"precision": "auto"})
    p.add_class_arguments(TuneOptim, "optim")
    p.add_class_arguments(CropConfig, "crop")
    p.add_argument("--head", type=Path | None, help="a head.pth of linear.py to start from, in place of a random one")
    p.add_argument("--resume", action="store_true", help="go on after the last whole epoch of the run")
    return p


def plan(o: Namespace, seed: int, device: torch.device) -> Run:
    """What is measured for a seed, before anything is computed."""
    backbone = read_checkpoint(o.ckpt, seed)
    optim, crop = TuneOptim(**o.optim.as_dict()), CropConfig(**o.crop.as_dict())
    size, dtype = options.view_size(o, backbone), autocast_dtype(o.precision, device)
    crop.view(size)
    train, test = source_names(o)
    config = {"data": train, "test": test, "size": size, "precision": str(dtype or torch.float32)}
    config |= {"labels": options.label_config(o), "optim": asdict(optim), "crop": asdict(crop)}
    config["head"] = head_hash(o.head)
    share = options.labels_in_words(o) or "1 of the labels"
    protocol = f"fine-tuning, {share}: SGD, {optim.in_words()}, weight decay {optim.weight_decay:g}, "
    protocol += f"{crop.in_words()}, {optim.rates_in_words()}, last epoch" + f", head from {o.head}" * bool(o.head)
    protocol += f"; {options.fine_print(o, size, dtype)}"
    return Run(backbone, "finetune", protocol, seed, config, "top1", o.out)


def evaluate(o: Namespace) -> None:
    """Measures all seeds and says the result."""
    options.require_data(o)
    device = start(o.device)
    if world_size() > 1 and device.type == "cpu":
        raise ValueError("several processes need GPUs here: batch norm must see the whole batch")
    evaluate_seeds(o, device, plan, lambda run: measure_one(run, o, device))


def measure_one(run: Run, o: Namespace, device: torch.device) -> Measurement:
    """Chooses the rates, trains on all labelled images, tests."""
    data = load_class_data(o)
    optim, crop = TuneOptim(**o.optim.as_dict()), CropConfig(**o.crop.as_dict())
    folder = options.run_folder(run, "finetune")
    dtype = autocast_dtype(o.precision, device)
    work = Work(folder, run.seed, device, dtype, run.config["size"], o.workers, o.resume)
    head = load_head(o.head, data.classes, run.backbone) if o.head else None
    chosen: dict[str, float] = {}
    if len(optim.pairs) > 1:
        tried = try_pairs(run, data, optim, crop, work, head)
        best = best_of(tried)
        chosen = {"base_lr": best[0], "head_factor": best[1], "held_out_top1": tried[best]}
        optim = optim.only(best)
    model = tune(run.backbone, data.train, optim, crop, work, head)
    ranked, labels = predict_all(model, data.test, work), torch.from_numpy(data.test.labels)
    cost = {"images": float(len(data.train)), **chosen, **finish(folder)}

    def draw() -> list[Path]:
        path = folder / "confusion.png"
        pictures.confusion(path, data.test.labels, ranked[:, 0].numpy(), data.classes, "fine-tuned")
        return [path]

    hits = {"top1": (ranked[:, 0] == labels).numpy()}
    return Measurement(scores(ranked, labels, data.classes), cost, hits, draw)


def try_pairs(
    run: Run, data: ClassData, optim: TuneOptim, crop: CropConfig, work: Work, head: nn.Linear | None
) -> dict[tuple[float, float], float]:
    """Accuracy on a held-out tenth of the training images for each pair of rates, 0 for one that diverges.

    Raises:
        Diverged: every pair does.
    """
    fit, held = hold_out(data.train.labels, run.seed)
    tried: dict[tuple[float, float], float] = {}
    diverged = 0
    for pair in optim.pairs:
        at = replace(work, folder=work.folder / f"trunk{pair[0]:g}_head{pair[1]:g}")
        try:
            model = tune(run.backbone, data.train.subset(fit), optim.only(pair), crop, at, head)
        except Diverged as error:  # on every rank at once
            tried[pair], outcome, diverged = 0.0, f"diverged ({error})", diverged + 1
        else:
            tried[pair] = top1(model, data.train.subset(held), work)
            outcome = f"{tried[pair]:.2%} of held-out images"
        if rank() == 0:
            print(f"lr {pair[0]:g}, head x {pair[1]:g}: {outcome}", flush=True)
    if diverged == len(tried):
        rates = "/".join(f"{lr:g}" for lr in optim.base_lr)
        raise Diverged(f"all {diverged} pairs of rates diverged, base lr {rates}; lower --optim.base_lr")
    return tried


def top1(model: nn.Module, images: ImageSet, work: Work) -> float:
    """Share of the images whose class the model names first."""
    return float((predict_all(model, images, work)[:, 0] == torch.from_numpy(images.labels)).double().mean())


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the result; return 0, or 2 for a user's mistake."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_benchmark("finetune", lambda: evaluate(options.parse(parser(), given)))


if __name__ == "__main__":
    sys.exit(main())
