"""Losses as loops written from the papers, and inputs for them.

Shapes: N queries, C embedding width, K queue entries.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.losses import positives


class Case(NamedTuple):
    q: Tensor
    k: Tensor
    queue: Tensor
    labels: Tensor
    queue_labels: Tensor

    def to(self, dtype: torch.dtype) -> Case:
        return self._replace(q=self.q.to(dtype), k=self.k.to(dtype), queue=self.queue.to(dtype))

    def with_grad(self) -> Case:
        return self._replace(q=self.q.clone().requires_grad_(), k=self.k.clone().requires_grad_())


def make_case(n: int = 5, c: int = 6, size: int = 13, labelled: float = 0.7, classes: int = 3, seed: int = 0) -> Case:
    """Random unit vectors, fp64; a share `labelled` of queries and queue entries has a label."""
    g = torch.Generator().manual_seed(seed)
    q, k = (F.normalize(torch.randn(n, c, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    queue = F.normalize(torch.randn(c, size, generator=g, dtype=torch.float64), dim=0)

    def draw(count: int) -> Tensor:
        keep = torch.rand(count, generator=g) < labelled
        return torch.where(keep, torch.randint(classes, (count,), generator=g), -1)

    return Case(q, k, queue, draw(n), draw(size))


def similarities(case: Case, i: int) -> tuple[list[float], list[float]]:
    """Positive and negative similarities of query i, one dot product at a time."""
    pos, neg = [float(torch.dot(case.q[i], case.k[i]).detach())], []
    for j in range(case.queue.shape[1]):
        s = float(torch.dot(case.q[i], case.queue[:, j]).detach())
        same = int(case.labels[i]) != -1 and int(case.labels[i]) == int(case.queue_labels[j])
        (pos if same else neg).append(s)
    return pos, neg


def naive_unicon(case: Case, temperature: float) -> list[float]:
    """log(1 + sum over negatives n and positives p of exp((s_n - s_p) / T)), term by term."""
    values = []
    for i in range(len(case.labels)):
        pos, neg = similarities(case, i)
        values.append(math.log1p(sum(math.exp((s_n - s_p) / temperature) for s_n in neg for s_p in pos)))
    return values


def naive_supcon(case: Case, temperature: float, form: str) -> list[float]:
    """Equations 2 ("out") and 3 ("in") of arXiv 2004.11362; A(i) = own key and queue, P(i) = own key and its class."""
    values = []
    for i in range(len(case.labels)):
        pos, neg = similarities(case, i)
        total = sum(math.exp(s / temperature) for s in pos + neg)
        shares = [math.exp(s / temperature) / total for s in pos]
        if form == "out":
            values.append(-sum(math.log(share) for share in shares) / len(pos))
        else:
            values.append(-math.log(sum(shares) / len(pos)))
    return values


def linear_space_unicon(case: Case, temperature: float) -> Tensor:
    """The published form, exponentials multiplied in linear space; autograd differentiates it."""
    s = torch.cat([(case.q * case.k).sum(1, keepdim=True), case.q @ case.queue], 1) / temperature
    y = torch.cat([torch.ones(len(s), 1, dtype=torch.bool), positives(case.labels, case.queue_labels)], 1)
    return torch.log1p((s.exp() * ~y).sum(1) * ((-s).exp() * y).sum(1)).mean()
