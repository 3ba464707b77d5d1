"""Weighted kNN on the frozen features of a checkpoint.

python transfer/knn.py --ckpt runs/fashion/last.pth
python transfer/knn.py --ckpt random:resnet18 --seeds 0 1
"""

from __future__ import annotations

import sys

import torch
from jsonargparse import ArgumentParser, Namespace

from pretrain.config import MonitorConfig
from pretrain.distributed import start, stop
from pretrain.images import ImageSet, load_images
from pretrain.knn import accuracy, extract_features, knn_predict
from transfer.common import Metrics, Run, add_options, measure, read_checkpoint, summary, told


def parser() -> ArgumentParser:
    """The options."""
    p = ArgumentParser(prog="transfer/knn.py", description=__doc__)
    add_options(p, "knn.jsonl")
    p.add_argument("--bank", default="fashion:train", help="source of the labelled images that vote")
    p.add_argument("--queries", default="fashion:test", help="source of the images to classify")
    p.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    p.add_argument("--size", type=int, help="side of the view in pixels; default: that of the pre-training, else 224")
    p.add_argument("--k", type=list[int], default=[10, 20, 100, 200], help="numbers of neighbours")
    p.add_argument("--temperature", type=float, default=MonitorConfig.temperature, help="T of the votes")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return p


def evaluate(options: Namespace) -> None:
    """Reads the checkpoint, computes features and votes, and says the result."""
    device = start(options.device)

    def plan(seed: int) -> Run:
        backbone = read_checkpoint(options.ckpt, seed)
        size = options.size or int(backbone.meta.get("image_size", 224))
        config = {name: options[name] for name in ("bank", "queries", "k", "temperature")} | {"size": size}
        protocol = f"weighted kNN, T {options.temperature:g}, pooled features, L2-normalised, {size} px"
        return Run(backbone, "knn", protocol, seed, config, options.out)

    def do(run: Run) -> tuple[Metrics, dict[str, float]]:
        bank, queries = (load_images([source], options.root) for source in (options.bank, options.queries))
        metrics = votes(run.backbone.build().to(device), bank, queries, run.config["size"], device, options)
        return metrics, {"images": float(len(bank) + len(queries))}

    print(summary(measure(map(plan, options.seeds), do, options, device)))


def votes(
    network: torch.nn.Module, bank: ImageSet, queries: ImageSet, size: int, device: torch.device, options: Namespace
) -> dict[str, float]:
    """Top-1 accuracy for each k."""
    if bank.classes != queries.classes:
        raise ValueError(f"{options.bank} and {options.queries} have different classes")
    features = [extract_features(network, images, size, device) for images in (bank, queries)]
    labels = [torch.from_numpy(images.labels).to(device) for images in (bank, queries)]
    ranked = knn_predict(features[0], labels[0], features[1], len(bank.classes), options.k, options.temperature)
    return {f"knn_top1_k{k}": accuracy(order, labels[1]) for k, order in ranked.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measures and says the result; 0, or 2 for a mistake in the input."""
    options = parser().parse_args(arguments)
    try:
        return told("knn", lambda: evaluate(options))
    finally:
        stop()


if __name__ == "__main__":
    sys.exit(main())
