"""Linear heads: initialisation, files, predictions, metrics.

Shapes: N images, D feature width, C classes.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from common.distributed import gather_objects
from common.files import write_tensors
from common.knn import accuracy
from converters import Backbone
from transfer.benchmark import Metrics

FORMAT = "unimoco-suite head"
Choice = TypeVar("Choice")
NAMED = 20  # with at most so many classes, each has a metric of its own


def new_head(features: int, classes: int, seed: int, start: nn.Linear | None = None) -> nn.Linear:
    """Return a head D -> C: a copy of `start`, or MoCo's: weights from N(0, 0.01), bias 0 (arXiv 1911.05722)."""
    if start is not None:
        return copy.deepcopy(start)
    head = nn.utils.skip_init(nn.Linear, features, classes)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    return head


def save_head(path: Path, head: nn.Linear, classes: list[str], backbone: Backbone) -> None:
    """Write a head with its classes and its checkpoint's hash; tensors and builtins only."""
    content = {
        "format": FORMAT,
        "weight": head.weight.detach().cpu().clone(),
        "bias": head.bias.detach().cpu().clone(),
        "classes": classes,
        "arch": backbone.arch,
        "checkpoint": backbone.source.content_id,
    }
    write_tensors(path, content)


def load_head(path: Path, classes: list[str], backbone: Backbone) -> nn.Linear:
    """Read a head for a backbone and a class map.

    Raises:
        ValueError: the file is no head, or one of another architecture, checkpoint or class map.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"--head {path}: not a head of transfer/linear.py ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"--head {path}: not a head of transfer/linear.py")
    if content["arch"] != backbone.arch:
        raise ValueError(f"--head {path}: made on a {content['arch']}, the checkpoint is a {backbone.arch}")
    if content["checkpoint"] != backbone.source.content_id:
        raise ValueError(
            f"--head {path}: trained on the features of the checkpoint with sha256 {content['checkpoint'][:12]}, "
            f"--ckpt {backbone.source.path} has {backbone.source.sha256[:12]}; give a head of its own"
        )
    if content["classes"] != classes:
        differing = sorted(set(content["classes"]) ^ set(classes))[:5]
        detail = f"they differ in {', '.join(differing)}" if differing else "they come in another order"
        raise ValueError(
            f"--head {path}: made for {len(content['classes'])} classes, the data have {len(classes)}: {detail}"
        )
    head = nn.utils.skip_init(nn.Linear, content["weight"].shape[1], len(classes))
    head.load_state_dict({"weight": content["weight"], "bias": content["bias"]}, strict=True)
    return head


@torch.no_grad()
def predict(head: nn.Linear, features: Tensor, first: int = 5) -> Tensor:
    """Return the most likely classes for features (N, D), the likeliest first: (N, first) int64 on the CPU."""
    return most_likely((head(part.to(head.weight)) for part in features.split(4096)), first)


def most_likely(logits: Iterable[Tensor], first: int = 5) -> Tensor:
    """Return the classes of the highest logits, parts (n, C), the highest first: (N, first) int64 on the CPU."""
    return torch.cat([part.topk(min(first, part.shape[1]), dim=1).indices.cpu() for part in logits])


def metrics_of(ranked: Tensor, labels: Tensor, classes: list[str]) -> Metrics:
    """Return top-1, top-5 of more than five classes, the mean over classes, and top-1 of each of at most 20 classes.

    `ranked` holds classes, the likeliest first, (N, 1 or more) int64; `labels` are (N,) int64.
    """
    metrics = {"top1": accuracy(ranked, labels)}
    if len(classes) > 5 and ranked.shape[1] >= 5:
        metrics["top5"] = accuracy(ranked, labels, 5)
    each = per_class(ranked, labels, classes)
    metrics["mean_per_class"] = sum(each.values()) / len(each)
    if len(classes) <= NAMED:
        metrics |= {f"top1 {name}": value for name, value in each.items()}
    return metrics


def top1_hits(ranked: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Return the `per_image` of a record: whether the first ranked class of each image is its label, (N,) bool."""
    return {"top1": (ranked[:, 0] == labels).numpy()}


def best_of(tried: Mapping[Choice, float]) -> Choice:
    """Return the choice with the highest held-out accuracy, the first of equals; rank 0's choice on every rank.

    Accuracies may differ between ranks by an image, and ranks with different choices would wait for each other forever.
    """
    best = max(tried, key=lambda choice: tried[choice])
    return cast(Choice, gather_objects(best)[0])


def per_class(ranked: Tensor, labels: Tensor, classes: list[str]) -> Metrics:
    """Return top-1 of each class that has test images."""
    correct = (ranked[:, 0] == labels).double()
    count = torch.bincount(labels, minlength=len(classes))
    hits = torch.bincount(labels, weights=correct, minlength=len(classes))
    return {name: float(hits[c] / count[c]) for c, name in enumerate(classes) if count[c]}
