"""Features in overlapping clusters, and the scores of kNN computed by loops."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CLASSES, T = 5, 0.07


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return (count, 12) normalised features around one centre per class, so near that neighbours disagree; labels."""
    centres = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.randn(count, 12, generator=generator)
    return F.normalize(centres[labels] + 1.6 * noise, dim=1), labels


BANK, BANK_LABELS = clusters(150, seed=1)
QUERIES, QUERY_LABELS = clusters(60, seed=2)


def ranks_by_loops(k: int, temperature: float, leave_one_out: bool) -> np.ndarray:
    """Return (N, classes) classes by falling score, in plain Python and double precision."""
    queries = BANK if leave_one_out else QUERIES
    scores = np.zeros((len(queries), CLASSES))
    for i, q in enumerate(queries.double()):
        similarity = [(float(q @ b), j) for j, b in enumerate(BANK.double()) if not (leave_one_out and i == j)]
        for s, j in sorted(similarity, reverse=True)[:k]:
            scores[i, BANK_LABELS[j]] += math.exp(s / temperature)
    return np.argsort(-scores, axis=1, kind="stable")  # classes without a neighbour stay in their order
