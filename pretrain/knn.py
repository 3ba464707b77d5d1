"""The weighted kNN classifier on frozen features (Wu et al., arXiv 1805.01978, section 3.4).

Shapes: B bank images, N queries, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pretrain.augment import MEAN, STD
from pretrain.data import EvaluationViews, default_workers, one_thread
from pretrain.distributed import all_gather, rank, world_size
from pretrain.images import ImageSet


def network_input(images: Tensor, device: torch.device) -> Tensor:
    """(n, S, S, 3) uint8 -> (n, 3, S, S) float32 on the device, ImageNet-normalised, in channels_last order."""
    x = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1) * 255
    return (x - mean) / std


def pooled_features(encoder: nn.Module, x: Tensor) -> Tensor:
    """(n, 3, S, S) -> (n, D): what a timm ResNet has before its head; any other network's output."""
    if isinstance(encoder, ResNet):
        pooled: Tensor = encoder.forward_head(encoder.forward_features(x), pre_logits=True)
        return pooled
    output: Tensor = encoder(x)
    return output


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    images: ImageSet,
    size: int,
    device: torch.device,
    batch: int = 256,
    workers: int | None = None,
) -> Tensor:
    """Pooled backbone features of all images, computed by all ranks together, in fp32.

    Args:
        encoder: see `pooled_features`; it is switched to evaluation and, module by module, back.
        images: B of them.
        size: side of the evaluation view, in pixels.
        device: where to compute.
        batch: images per forward pass.
        workers: loader processes.

    Returns:
        (B, D) float32, L2-normalised, on the device.
    """
    world = world_size()
    mine = np.arange(rank(), len(images), world)
    padding = -(-len(images) // world) - len(mine)
    mine = np.concatenate([mine, np.zeros(padding, dtype=mine.dtype)])
    loader = DataLoader(
        EvaluationViews(images.subset(mine), size),
        batch_size=batch,
        num_workers=default_workers(device) if workers is None else workers,
        worker_init_fn=one_thread,
    )
    training = {module: module.training for module in encoder.modules()}
    encoder.eval()
    features = []
    try:
        for views in loader:
            features.append(F.normalize(pooled_features(encoder, network_input(views, device)).float(), dim=1))
    finally:
        for module, mode in training.items():
            module.training = mode
    gathered = all_gather(torch.cat(features))
    interleaved = gathered.view(world, -1, gathered.shape[1]).transpose(0, 1).reshape(-1, gathered.shape[1])
    return interleaved[: len(images)]


@torch.no_grad()
def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    classes: int,
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
    chunk: int = 1024,
    leave_one_out: bool = False,
) -> dict[int, Tensor]:
    """Classes ranked by the votes of the k nearest bank images, each worth exp(cosine similarity / T).

    Args:
        bank: (B, D) L2-normalised features.
        bank_labels: (B,) int64, 0 ... classes - 1.
        queries: (N, D) L2-normalised features.
        classes: number of classes.
        ks: numbers of neighbours, all answered in one pass.
        temperature: T > 0.
        chunk: queries handled at a time; memory grows with chunk * B, not with N * B.
        leave_one_out: queries are the bank itself; no image votes for itself.

    Returns:
        For each k, (N, classes) int64: classes by falling vote.

    Raises:
        ValueError: a k below 1 or above the size of the bank, or temperature <= 0.
    """
    available = len(bank) - int(leave_one_out)
    for k in ks:
        if not 1 <= k <= available:
            raise ValueError(f"k={k}: must lie between 1 and the {available} images of the bank")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    ranked: dict[int, list[Tensor]] = {k: [] for k in ks}
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ bank.T  # (n, B)
        if leave_one_out:
            rows = torch.arange(len(similarity), device=bank.device)
            similarity[rows, rows + start] = -torch.inf
        top, nearest = similarity.topk(max(ks), dim=1)
        # Relative to the nearest: at a small T every exp(s / T) would be 0 or infinite.
        weights, neighbours = ((top - top[:, :1]) / temperature).exp(), bank_labels[nearest]
        for k in ks:
            votes = similarity.new_zeros(len(similarity), classes).scatter_add_(1, neighbours[:, :k], weights[:, :k])
            ranked[k].append(votes.argsort(stable=True, dim=1, descending=True))
    return {k: torch.cat(parts) for k, parts in ranked.items()}


def accuracy(ranked: Tensor, labels: Tensor, top: int = 1) -> float:
    """Share of the N queries whose label is among the first `top` of (N, classes) ranked classes."""
    return float((ranked[:, :top] == labels[:, None]).any(1).double().mean())
