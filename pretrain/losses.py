"""Contrastive losses with any number of positives per query.

Shapes: N queries, C embedding width, K queue entries. A queue entry is a positive of a query when both have the same
label and that label is not -1 (unlabelled); the positive key, of the same image, is always one. Entries in `ignore` are
neither positive nor negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.images import UNLABELLED

Reduction = Literal["mean", "sum", "none"]
LossFn = Callable[..., Tensor]
# Queue entries per block: at N = 256 the similarities of a block (8 MiB) stay in a CPU's cache.
CHUNK = {"cpu": 4096, "cuda": 32768}
# Fraction of a block below which positives are added one by one on the CPU; measured: break-even at about 1 in 64.
SPARSE = 1 / 64
EXPONENT = 80.0  # exp of it, and of its negative, is a normal number in fp32


def positives(labels: Tensor, queue_labels: Tensor) -> Tensor:
    """Return which queue entries are positives of which query.

    Args:
        labels: (N,) int64, -1 = unlabelled.
        queue_labels: (K,) int64, -1 = unlabelled.

    Returns:
        (N, K) bool.
    """
    return (labels[:, None] == queue_labels) & (labels[:, None] != UNLABELLED)


def unicon(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    labels: Tensor,
    queue_labels: Tensor,
    temperature: float,
    reduction: Reduction = "mean",
    ignore: Tensor | None = None,
) -> Tensor:
    """Compute UniCon (UniMoCo, arXiv 2103.10773): log(1 + sum over negatives n, positives p of exp((s_n - s_p) / T)).

    Evaluated as softplus(logsumexp(s_n / T) + logsumexp(-s_p / T)) in fp32 (fp64 for fp64 inputs), in one pass over
    blocks of the queue: no N x K matrix is kept, neither for the value nor for the gradient. With every label -1
    it equals `info_nce`.

    >>> q = k = torch.eye(2)  # two queries (N, C), each equal to its positive key
    >>> queue, queue_labels = torch.eye(2), torch.tensor([7, -1])  # (C, K), (K,)
    >>> unicon(q, k, queue, torch.tensor([7, -1]), queue_labels, temperature=0.2, reduction="none")
    tensor([0.0134, 0.6965])

    Args:
        q: (N, C) query embeddings, L2-normalised.
        k: (N, C) positive keys: embeddings of the same images, L2-normalised.
        queue: (C, K) earlier keys, L2-normalised. No gradient flows into it.
        labels: (N,) int64 labels of the queries, -1 = unlabelled.
        queue_labels: (K,) int64 labels of the queue entries, -1 = unlabelled.
        temperature: T > 0.
        reduction: "mean", "sum" or "none".
        ignore: (N, K) bool, or None: entries that are neither negatives nor positives.

    Returns:
        Scalar, or (N,) with reduction "none".

    Raises:
        ValueError: shapes do not fit, temperature <= 0, or unknown reduction.
    """
    _check(q, k, queue, labels, queue_labels, temperature, ignore)
    loss: Tensor = _UniCon.apply(q, k, queue, labels, queue_labels, temperature, ignore)
    return _reduce(loss, reduction)


def info_nce(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    labels: Tensor,
    queue_labels: Tensor,
    temperature: float,
    reduction: Reduction = "mean",
    ignore: Tensor | None = None,
) -> Tensor:
    """Compute InfoNCE (MoCo, arXiv 1911.05722, eq. 1): the positive key is the only positive, labels are ignored.

    Arguments, return value and errors as in `unicon`, which it equals without labels.
    """
    nobody = torch.full_like(labels, UNLABELLED)
    return unicon(q, k, queue, nobody, queue_labels, temperature, reduction, ignore)


def supcon(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    labels: Tensor,
    queue_labels: Tensor,
    temperature: float,
    reduction: Reduction = "mean",
    ignore: Tensor | None = None,
    form: Literal["out", "in"] = "out",
) -> Tensor:
    """Compute the supervised contrastive loss (Khosla et al., arXiv 2004.11362) on a queue, for the ablation.

    form "out" (eq. 2): the mean over positives is outside the logarithm; "in" (eq. 3): inside it. The
    denominator has every positive and negative. Other arguments, return value and errors as in `unicon`.
    """
    _check(q, k, queue, labels, queue_labels, temperature, ignore)
    with torch.autocast(q.device.type, enabled=False):
        q, k, queue = (_full_precision(t) for t in (q, k, queue))
        to_key = (q * k).sum(1, keepdim=True)
        logits = torch.cat([to_key, q @ queue.detach()], dim=1) / temperature  # (N, 1 + K)
        positive = F.pad(positives(labels, queue_labels), (1, 0), value=True)
        if ignore is not None:
            ignored = F.pad(ignore, (1, 0), value=False)
            logits = logits.masked_fill(ignored, -torch.inf)
            positive = positive & ~ignored
        count = positive.sum(1)
        everything = logits.logsumexp(1)
        if form == "out":
            loss = everything - logits.masked_fill(~positive, 0).sum(1) / count
        else:
            loss = everything - logits.masked_fill(~positive, -torch.inf).logsumexp(1) + count.to(logits.dtype).log()
    return _reduce(loss, reduction)


def supcon_in(*args: Any, **kwargs: Any) -> Tensor:
    """Compute `supcon` with the mean over positives inside the logarithm (eq. 3 of arXiv 2004.11362)."""
    return supcon(*args, **{**kwargs, "form": "in"})


LOSSES: dict[str, LossFn] = {"unicon": unicon, "supcon": supcon, "supcon_in": supcon_in, "info_nce": info_nce}


class _UniCon(torch.autograd.Function):
    """The value needs two log-sum-exps over the queue, the gradient two weighted means of its columns.

    Both are gathered block by block with running maxima. Per query, with s = similarity / T,
    A = sum of exp(s) over negatives, B = sum of exp(-s) over positives, L = log(1 + A B):
        dL/ds_n = sigmoid(log A B) * exp(s_n) / A        dL/ds_p = -sigmoid(log A B) * exp(-s_p) / B
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        queue: Tensor,
        labels: Tensor,
        queue_labels: Tensor,
        temperature: float,
        ignore: Tensor | None,
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            q32, k32, queue32 = (_full_precision(t) for t in (q, k, queue))
            scaled = q32 / temperature
            to_key = (scaled * k32).sum(1, keepdim=True)  # (N, 1)
            pos = _WeightedSum(-to_key, torch.ones_like(to_key), k32.clone())
            neg = _WeightedSum(torch.full_like(to_key, -torch.inf), torch.zeros_like(to_key), torch.zeros_like(k32))
            if q.device.type == "cpu" and _bound(scaled, queue32) <= EXPONENT / 2:
                neg.fix()
            step = CHUNK.get(q.device.type, CHUNK["cpu"])
            for start in range(0, queue.shape[1], step):
                columns = queue32[:, start : start + step]
                ignored = None if ignore is None else ignore[:, start : start + step]
                _add_block(pos, neg, scaled @ columns, columns, labels, queue_labels[start : start + step], ignored)
            log_ab = neg.logsumexp() + pos.logsumexp()  # (N,)
            gate = torch.sigmoid(log_ab)[:, None] / temperature
            grad_q = gate * (neg.mean() - pos.mean())
            grad_k = -gate * torch.exp(-to_key - pos.logsumexp()[:, None]) * q32 if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(grad_q, grad_k)
        ctx.dtypes = q.dtype, k.dtype
        return F.softplus(log_ab)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_q, grad_k = ctx.saved_tensors
        dq = (grad[:, None] * grad_q).to(ctx.dtypes[0])
        dk = None if grad_k is None else (grad[:, None] * grad_k).to(ctx.dtypes[1])
        return dq, dk, None, None, None, None, None


def _bound(scaled: Tensor, queue: Tensor) -> float:
    """Return an upper bound of |s|, by Cauchy and Schwarz. On a GPU the host would wait for it."""
    longest = max(float(block.square().sum(0).max()) for block in queue.split(CHUNK["cpu"], dim=1))
    return float(scaled.norm(dim=1).max()) * math.sqrt(longest)


def _add_block(
    pos: _WeightedSum, neg: _WeightedSum, s: Tensor, columns: Tensor, labels: Tensor, queue_labels: Tensor,
    ignored: Tensor | None,
) -> None:  # fmt: skip
    """Add s (N, block), which is overwritten, to the sums over positives and negatives."""
    # On the CPU it pays to look for the positives first: few of them (many classes, or no labels) need no pass over
    # the whole block. On a GPU the host would wait for their number.
    pairs = _few_pairs(labels, queue_labels) if s.device.type == "cpu" else None
    if pairs is None:
        is_pos = not_neg = positives(labels, queue_labels)
        if ignored is not None:
            is_pos, not_neg = is_pos & ~ignored, is_pos | ignored
        pos.add((-s).masked_fill_(~is_pos, -torch.inf), columns)
        neg.add(s.masked_fill_(not_neg, -torch.inf), columns)
        return
    rows, positions = pairs
    if ignored is not None:
        rows, positions = (x[~ignored[pairs]] for x in pairs)
        s.masked_fill_(ignored, -torch.inf)
    if len(rows):
        pos.add_entries(-s[rows, positions], rows, columns.T[positions])
    s[pairs] = -torch.inf
    neg.add(s, columns)


def _few_pairs(labels: Tensor, queue_labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return row and position of each positive in a block; None where they are not few."""
    in_order, order = queue_labels.sort()
    first = torch.searchsorted(in_order, labels)
    count = (torch.searchsorted(in_order, labels, right=True) - first) * (labels != UNLABELLED)
    total = int(count.sum())
    if total >= len(labels) * len(queue_labels) * SPARSE:
        return None
    rows = torch.repeat_interleave(count)
    within = torch.arange(total) - (count.cumsum(0) - count)[rows]
    return rows, order[first[rows] + within]


class _WeightedSum:
    """Running sums of exp(x) and of exp(x) * column over blocks of x (N, block), scaled by exp(-maximum)."""

    def __init__(self, maximum: Tensor, total: Tensor, vectors: Tensor) -> None:
        self.maximum, self.total, self.vectors = maximum, total, vectors  # (N, 1), (N, 1), (N, C)
        self.fixed = False

    def fix(self) -> None:
        """Leave x as it is from now on: no exp of it overflows or vanishes; nothing has been added yet."""
        self.maximum, self.fixed = torch.zeros_like(self.maximum), True

    def add(self, x: Tensor, columns: Tensor) -> None:
        """Add a block: x (N, block) is overwritten, -inf where an entry does not count; columns (C, block)."""
        if self.fixed:
            weights = x.exp_()
            self.total += weights.sum(1, keepdim=True)
            self.vectors.addmm_(weights, columns.T)
            return
        maximum = torch.maximum(self.maximum, x.amax(1, keepdim=True))
        shift = maximum.masked_fill(maximum == -torch.inf, 0)  # all -inf so far: exp(-inf - 0) = 0, not nan
        weights = x.sub_(shift).exp_()
        keep = torch.exp(self.maximum - shift)
        self.total = self.total * keep + weights.sum(1, keepdim=True)
        self.vectors = torch.addmm(self.vectors * keep, weights, columns.T)
        self.maximum = maximum

    def add_entries(self, values: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Add single entries: values (P,), the query of each (P,), and its column (P, C)."""
        rest = torch.full_like(self.maximum, -torch.inf).squeeze(1)
        highest = rest.scatter_reduce(0, rows, values, "amax")[:, None]
        maximum = torch.maximum(self.maximum, highest)
        weights = torch.exp(values - maximum[rows, 0])
        keep = torch.exp(self.maximum - maximum)
        self.total = (self.total * keep).index_add(0, rows, weights[:, None])
        self.vectors = (self.vectors * keep).index_add(0, rows, weights[:, None] * columns)
        self.maximum = maximum

    def logsumexp(self) -> Tensor:
        """Return the log-sum-exp of all entries, (N,)."""
        return (self.maximum + self.total.log()).squeeze(1)

    def mean(self) -> Tensor:
        """Return the weighted mean of the columns, (N, C); zero where nothing was added."""
        return self.vectors / self.total.clamp_min(torch.finfo(self.total.dtype).tiny)


def _full_precision(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction in ("mean", "sum"):
        return loss.mean() if reduction == "mean" else loss.sum()
    raise ValueError(f"reduction={reduction!r}: use 'mean', 'sum' or 'none'")


def _check(
    q: Tensor, k: Tensor, queue: Tensor, labels: Tensor, queue_labels: Tensor, temperature: float, ignore: Tensor | None
) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0 (MoCo v2 and UniMoCo use 0.2)")
    if q.dim() != 2 or q.shape != k.shape:
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)}: both must be (N, C)")
    if queue.dim() != 2 or queue.shape[0] != q.shape[1]:
        raise ValueError(f"queue {tuple(queue.shape)}: must be (C, K) with C = {q.shape[1]}")
    if labels.shape != q.shape[:1] or queue_labels.shape != queue.shape[1:]:
        raise ValueError(
            f"labels {tuple(labels.shape)} and queue_labels {tuple(queue_labels.shape)}: "
            f"must be ({q.shape[0]},) and ({queue.shape[1]},)"
        )
    if ignore is not None and ignore.shape != (q.shape[0], queue.shape[1]):
        raise ValueError(f"ignore {tuple(ignore.shape)}: must be (N, K) = ({q.shape[0]}, {queue.shape[1]})")
