"""Linear heads: their files, and what is said of their predictions.

Shapes: N images, D feature width, C classes.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from common.distributed import gather_objects
from common.files import sha256, write_atomically
from common.knn import accuracy
from converters import Backbone
from transfer.benchmark import Metrics

FORMAT = "unimoco-suite head"
Choice = TypeVar("Choice")
NAMED = 20  # up to so many classes each has a metric of its own


def new_head(features: int, classes: int, seed: int) -> nn.Linear:
    """D -> C, weights from N(0, 0.01), bias 0, as MoCo's linear protocol starts it (arXiv 1911.05722, section 4.1)."""
    head = nn.utils.skip_init(nn.Linear, features, classes)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    return head


def save_head(path: Path, head: nn.Linear, classes: list[str], backbone: Backbone) -> None:
    """Writes a head with what it belongs to; tensors and builtins."""
    content = {
        "format": FORMAT,
        "weight": head.weight.detach().cpu().clone(),
        "bias": head.bias.detach().cpu().clone(),
        "classes": classes,
        "arch": backbone.arch,
        "checkpoint": backbone.source.sha256,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: torch.save(content, part))


def head_hash(path: Path | None) -> str | None:
    """The hash of a head's file, by which a record knows it wherever it lies; None where there is no head.

    Raises:
        ValueError: no such file.
    """
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"--head {path}: no such file; transfer/linear.py leaves a head.pth in its run folder")
    return sha256(path)


def load_head(path: Path, classes: list[str], backbone: Backbone) -> nn.Linear:
    """Reads a head for a backbone and a class map.

    Raises:
        ValueError: no head, or a head of another architecture, of another checkpoint or of other classes.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"--head {path}: not a head of transfer/linear.py ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"--head {path}: not a head of transfer/linear.py")
    if content["arch"] != backbone.arch:
        raise ValueError(f"--head {path}: made on a {content['arch']}, the checkpoint is a {backbone.arch}")
    if content["checkpoint"] != backbone.source.sha256:
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
def predict(head: nn.Linear, features: Tensor, first: int = 5, chunk: int = 4096) -> Tensor:
    """(N, first) int64 on the CPU: the most likely classes for features (N, D), the likeliest first."""
    parts = [
        head(features[start : start + chunk].to(head.weight)).topk(min(first, head.out_features), dim=1).indices.cpu()
        for start in range(0, len(features), chunk)
    ]
    return torch.cat(parts)


def scores(ranked: Tensor, labels: Tensor, classes: list[str], prefix: str = "") -> Metrics:
    """Top-1, top-5 where there are more classes than that, the mean over classes, and each of up to 20 classes.

    Args:
        ranked: (N, 1 or more) int64: classes, the likeliest first.
        labels: (N,) int64.
        classes: class names.
        prefix: of the metrics' names.
    """
    metrics = {f"{prefix}top1": accuracy(ranked, labels)}
    if len(classes) > 5 and ranked.shape[1] >= 5:
        metrics[f"{prefix}top5"] = accuracy(ranked, labels, 5)
    each = per_class(ranked, labels, classes)
    metrics[f"{prefix}mean_per_class"] = sum(each.values()) / len(each)
    if len(classes) <= NAMED:
        metrics |= {f"{prefix}top1 {name}": value for name, value in each.items()}
    return metrics


def best_of(tried: Mapping[Choice, float]) -> Choice:
    """What has the highest held-out accuracy, the first of equals; rank 0's choice on every rank.

    Accuracies may differ between ranks in the last image, and ranks that went on with different choices would never
    meet again.
    """
    best = max(tried, key=lambda choice: tried[choice])
    return cast(Choice, gather_objects(best)[0])


def per_class(ranked: Tensor, labels: Tensor, classes: list[str]) -> Metrics:
    """Top-1 of each class that has test images."""
    right = (ranked[:, 0] == labels).double()
    number = torch.bincount(labels, minlength=len(classes))
    hits = torch.bincount(labels, weights=right, minlength=len(classes))
    return {name: float(hits[c] / number[c]) for c, name in enumerate(classes) if number[c]}
