"""The weighted kNN classifier on frozen features (Wu et al., arXiv 1805.01978, section 3.4).

Shapes: N queries, B images of the bank, D feature width, C classes, k neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Similarities computed at a time: 128 and 512 MiB. Of 10,000 queries and the 1.28 M images of ImageNet an H200 needs
# 3.2 s with the first, 1.5 s with the second and 1.3 s with four times as many.
SIMILARITIES = {"cpu": 2**25, "cuda": 2**27}


@torch.no_grad()
def knn_predict(
    queries: Tensor, bank: Tensor, bank_labels: Tensor, classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Rank the classes of each query by the scores of its k nearest bank images.

        >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> bank_labels = torch.tensor([0, 1, 1])
        >>> queries = torch.tensor([[0.8, 0.6]])  # cosine similarities 0.8, 0.6, 0.96
        >>> knn_predict(queries, bank, bank_labels, classes=2, k=3)
        tensor([[1, 0]])

    Args:
        queries: (N, D), L2-normalised.
        bank: (B, D), L2-normalised, on the queries' device.
        bank_labels: (B,) int64, 0 ... C - 1.
        classes: C.
        k: 1 ... B.
        temperature: T > 0; see `rank_classes`.

    Returns:
        (N, C) int64: classes by falling score, so that `[:, 0]` is the prediction.

    Raises:
        ValueError: k or temperature is out of range.
    """
    check_k(k, len(bank))
    ranked = []
    for part in queries.split(max(1, SIMILARITIES[bank.device.type] // len(bank))):
        similarity, index = (part @ bank.T).topk(k, dim=1)
        ranked.append(rank_classes(similarity, bank_labels[index], classes, temperature))
    return torch.cat(ranked)


def rank_classes(similarity: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Rank classes by score: the sum of exp(cosine similarity / T) over the neighbours of that class.

    Args:
        similarity: (N, k) cosine similarities of the neighbours, the nearest first; -inf for a neighbour that is none.
        labels: (N, k) int64, their classes.
        classes: C.
        temperature: T > 0.

    Returns:
        (N, C) int64: classes by falling score; equal ones in their order.

    Raises:
        ValueError: temperature <= 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    # Relative to the nearest: at a small T every exp(s / T) would be 0 or infinite.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    scores = weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)
    return scores.argsort(stable=True, dim=1, descending=True)


def check_k(k: int, available: int) -> None:
    """Raise a ValueError for a k below 1 or above the number of bank images that may be neighbours."""
    if not 1 <= k <= available:
        raise ValueError(f"k={k}: must lie between 1 and the {available} images of the bank")


def accuracy(ranked: Tensor, labels: Tensor, top: int = 1) -> float:
    """Return the fraction of N queries whose label is among the first `top` of (N, 1 or more) ranked classes."""
    return float((ranked[:, :top] == labels[:, None]).any(1).double().mean())
