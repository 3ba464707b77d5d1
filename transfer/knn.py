"""Weighted kNN on the frozen features of a checkpoint.

python transfer/knn.py --ckpt runs/fashion/last.pth
python transfer/knn.py --ckpt random:resnet18 --seed 1
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from converters import read_backbone
from pretrain.config import MonitorConfig
from pretrain.distributed import start, stop
from pretrain.images import ImageSet, load_images
from pretrain.knn import accuracy, extract_features, knn_predict
from pretrain.run_folder import environment
from results.record import Record, append, read


def parser() -> ArgumentParser:
    """The options."""
    p = ArgumentParser(prog="transfer/knn.py", description=__doc__)
    p.add_argument("--ckpt", required=True, help="a checkpoint in any format, or random:ARCH, timm:NAME")
    p.add_argument("--bank", default="fashion:train", help="source of the labelled images that vote")
    p.add_argument("--queries", default="fashion:test", help="source of the images to classify")
    p.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    p.add_argument("--size", type=int, help="side of the view in pixels; default: that of the pre-training, else 224")
    p.add_argument("--k", type=list[int], default=[10, 20, 100, 200], help="numbers of neighbours")
    p.add_argument("--temperature", type=float, default=MonitorConfig.temperature, help="T of the votes")
    p.add_argument("--seed", type=int, default=0, help="of the weights of random:ARCH; kNN itself draws nothing")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--records", type=Path, default=Path("results/records/knn.jsonl"), help="file to append to")
    p.add_argument("--force", action="store_true", help="measure again what is on record")
    return p


def evaluate(options: Namespace) -> Record:
    """Reads the checkpoint, computes features and votes, and returns the record (of the file, where it is there)."""
    name = options.ckpt
    if name.startswith("random:") and "seed=" not in name:
        name += f"?seed={options.seed}"
    backbone = read_backbone(name)
    size = options.size or int(backbone.meta.get("image_size", 224))
    config = {
        "bank": options.bank, "queries": options.queries, "size": size, "k": list(options.k),
        "temperature": options.temperature,
    }  # fmt: skip
    checkpoint = {
        "path": backbone.source.path, "sha256": backbone.source.sha256, "format": backbone.source.format,
        "arch": backbone.arch, **backbone.meta,
    }  # fmt: skip
    device = start(options.device)
    began = time.time()
    bank, queries = (load_images([source], options.root) for source in (options.bank, options.queries))
    draft: dict[str, Any] = {
        "task": "knn",
        "protocol": f"weighted kNN, T {options.temperature:g}, pooled features, L2-normalised, {size} px",
        "checkpoint": checkpoint, "seed": options.seed, "config": config, "environment": environment(device),
    }  # fmt: skip
    wanted = Record(**draft, metrics={"none": 0.0}, cost={})
    known = [] if options.force else [r for r in read(options.records) if r.key == wanted.key]
    if known:
        return known[-1]
    metrics = votes(backbone.build().to(device), bank, queries, size, device, options)
    cost = {"seconds": time.time() - began, "images": float(len(bank) + len(queries))}
    record = Record(**draft, metrics=metrics, cost=cost)
    append(options.records, record)
    return record


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
        record = evaluate(options)
    except ValueError as error:
        print(f"knn: error: {error}", file=sys.stderr)
        return 2
    finally:
        stop()
    print(f"{options.ckpt}: " + ", ".join(f"{name} {value:.2%}" for name, value in record.metrics.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
