"""The weighted kNN classifier on frozen features (Wu et al., arXiv 1805.01978, section 3.4).

Shapes: B bank images, N queries, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from common.distributed import all_gather, world_size


@dataclass(frozen=True)
class Neighbours:
    """The k most similar bank images of each query, the nearest first.

    Args:
        similarity: (N, k) float32 cosine similarities; -inf where the bank had no more images.
        labels: (N, k) int64, their classes.
    """

    similarity: Tensor
    labels: Tensor

    def merge(self, other: Neighbours, k: int) -> Neighbours:
        """The k nearest of both; each side's order decides between equals, this side's first."""
        similarity = torch.cat([self.similarity, other.similarity], dim=1)
        labels = torch.cat([self.labels, other.labels], dim=1)
        top, places = similarity.topk(min(k, similarity.shape[1]), dim=1)
        return Neighbours(top, labels.gather(1, places))


@torch.no_grad()
def nearest(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    k: int,
    chunk: int = 1024,
    block: int = 8192,
    own: Tensor | None = None,
    normalise: bool = False,
) -> Neighbours:
    """The k nearest bank images of each query, by cosine similarity in fp32.

    The bank is read once, `block` rows at a time, and may lie in a file or on another device, in half precision.
    Beside its arguments it takes 4 * (block * D + 2 * chunk * block + chunk * D) + 12 * N * k bytes, whatever B is.

    Args:
        bank: (B, D) features, L2-normalised unless `normalise`.
        bank_labels: (B,) int64.
        queries: (N, D) features, as the bank's; the work is done on their device.
        k: number of neighbours.
        chunk: queries handled at a time.
        block: bank rows handled at a time.
        own: (N,) int64, for each query the bank row that is itself and does not count (-1: none).
        normalise: L2-normalise the rows of both as they are read.
    """
    device, n = queries.device, len(queries)
    starts = range(0, n, chunk)
    best = [
        Neighbours(
            torch.empty(len(part), 0, device=device), torch.empty(len(part), 0, dtype=torch.int64, device=device)
        )
        for part in (queries[start : start + chunk] for start in starts)
    ]

    def ready(part: Tensor) -> Tensor:
        part = part.to(device, torch.float32, copy=normalise)
        return part.div_(torch.linalg.vector_norm(part, dim=1, keepdim=True).clamp_min_(1e-12)) if normalise else part

    def search(first: int) -> None:
        rows = ready(bank[first : first + block])
        labels = bank_labels[first : first + block].to(device)
        for number, start in enumerate(starts):
            similarity = ready(queries[start : start + chunk]) @ rows.T  # (chunk, block)
            if own is not None:
                place = own[start : start + chunk] - first
                inside = ((place >= 0) & (place < len(rows))).nonzero(as_tuple=True)[0]
                similarity[inside, place[inside]] = -torch.inf
            top, places = similarity.topk(min(k, len(rows)), dim=1)
            best[number] = best[number].merge(Neighbours(top, labels[places]), k)

    for first in range(0, len(bank), block):  # a function, so that one block is freed before the next is read
        search(first)
    return Neighbours(torch.cat([b.similarity for b in best]), torch.cat([b.labels for b in best]))


def gather_nearest(mine: Neighbours, k: int) -> Neighbours:
    """The k nearest over all ranks, each of which has searched its own part of the bank for the same queries."""
    if world_size() == 1:
        return mine
    missing = k - mine.similarity.shape[1]  # a collective needs equal shapes
    similarity = all_gather(F.pad(mine.similarity, (0, missing), value=-torch.inf)[None])
    labels = all_gather(F.pad(mine.labels, (0, missing))[None])
    found = Neighbours(similarity[0], labels[0])
    for part in range(1, world_size()):
        found = found.merge(Neighbours(similarity[part], labels[part]), k)
    return found


def knn_scores(
    neighbours: Neighbours, classes: int, k: int, temperature: float, first: int | None = None, chunk: int = 4096
) -> Tensor:
    """Classes ranked by the votes of the k nearest, each worth exp(cosine similarity / T).

    Args:
        neighbours: at least k of each of N queries.
        classes: number of classes.
        k: how many of them vote.
        temperature: T > 0.
        first: return only so many classes a query; default: all.
        chunk: queries handled at a time.

    Returns:
        (N, first) int64: classes by falling vote.

    Raises:
        ValueError: temperature <= 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    ranked = []
    for start in range(0, len(neighbours.similarity), chunk):
        similarity, labels = (x[start : start + chunk, :k] for x in (neighbours.similarity, neighbours.labels))
        # Relative to the nearest: at a small T every exp(s / T) would be 0 or infinite.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        total = weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)
        ranked.append(total.argsort(stable=True, dim=1, descending=True)[:, :first])
    return torch.cat(ranked)


def check_neighbours(ks: Sequence[int], available: int) -> None:
    """Raises a ValueError for a k below 1 or above the number of images that may vote."""
    for k in ks:
        if not 1 <= k <= available:
            raise ValueError(f"k={k}: must lie between 1 and the {available} images of the bank")


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
    """Classes ranked by the votes of the k nearest bank images, for several k in one pass.

    Args:
        bank: (B, D) L2-normalised features.
        bank_labels: (B,) int64, 0 ... classes - 1.
        queries: (N, D) L2-normalised features.
        classes: number of classes.
        ks: numbers of neighbours.
        temperature: T > 0.
        chunk: queries handled at a time.
        leave_one_out: queries are the bank itself; no image votes for itself.

    Returns:
        For each k, (N, classes) int64: classes by falling vote.

    Raises:
        ValueError: a k below 1 or above the size of the bank, or temperature <= 0.
    """
    check_neighbours(ks, len(bank) - int(leave_one_out))
    own = torch.arange(len(queries), device=queries.device) if leave_one_out else None
    found = nearest(bank, bank_labels, queries, max(ks), chunk, own=own)
    return {k: knn_scores(found, classes, k, temperature) for k in ks}


def accuracy(ranked: Tensor, labels: Tensor, top: int = 1) -> float:
    """Share of the N queries whose label is among the first `top` of (N, classes) ranked classes."""
    return float((ranked[:, :top] == labels[:, None]).any(1).double().mean())
