"""Multinomial logistic regression on features, by L-BFGS, the penalty chosen on held-out images.

Shapes: B images, D feature width, C classes. Features are standardised (mean 0, spread 1 over the training images)
in what is minimised:

    mean cross-entropy + penalty / 2 * sum of squared weights

scikit-learn's LogisticRegression minimises the same with C = 1 / (penalty * B). Here the features may lie in a file
and in half precision; they are read `CHUNK` rows at a time, and no copy of them is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer.classification.heads import predict

CHUNK = 8192
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass
class Problem:
    """Standardised features and labels of some of the images, and the weights so far.

    Args:
        features: (B, D), any floating type.
        labels: (B,) int64.
        rows: (n,) int64: the images that count.
        classes: C.
        device: where to compute.
    """

    features: Tensor
    labels: Tensor
    rows: Tensor
    classes: int
    device: torch.device

    def __post_init__(self) -> None:
        total = squares = torch.zeros(self.features.shape[1], dtype=torch.float64, device=self.device)
        for x, _ in self.chunks():
            total, squares = total + x.double().sum(0), squares + x.double().square().sum(0)
        mean = total / len(self.rows)
        spread = (squares / len(self.rows) - mean.square()).clamp_min(0).sqrt()
        self.mean = mean.float()
        self.spread = torch.where(spread > 1e-6 * (1 + mean.abs()), spread, torch.ones_like(spread)).float()
        width = self.features.shape[1]
        self.weight = torch.zeros(self.classes, width, device=self.device, requires_grad=True)
        self.bias = torch.zeros(self.classes, device=self.device, requires_grad=True)

    def chunks(self):  # type: ignore[no-untyped-def]
        """Features (n, D) float32 and labels (n,) of the rows that count, part by part."""
        everything = len(self.rows) == len(self.features)
        for start in range(0, len(self.rows), CHUNK):
            place = slice(start, start + CHUNK) if everything else self.rows[start : start + CHUNK]
            yield self.features[place].to(self.device).float(), self.labels[place].to(self.device)

    @torch.no_grad()
    def loss(self, penalty: float) -> Tensor:
        """What is minimised; its gradient goes into weight.grad and bias.grad.

        With x' = (x - mean) / spread the logits are x W' + b', W' = W / spread, b' = b - W' mean, so features are used
        as they are; G = sum over images of (softmax - one-hot) gives dW = (G x - sum(G) mean) / spread.
        """
        raw, count = self.weight / self.spread, len(self.rows)
        shift = self.bias - raw @ self.mean
        value = torch.zeros((), device=self.device)
        gradient, gradient_bias = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        for x, y in self.chunks():
            logits = torch.addmm(shift, x, raw.T)
            value += F.cross_entropy(logits, y, reduction="sum")
            error = logits.softmax(1)
            error[torch.arange(len(y), device=self.device), y] -= 1
            gradient += error.T @ x
            gradient_bias += error.sum(0)
        gradient = (gradient - torch.outer(gradient_bias, self.mean)) / self.spread
        self.weight.grad = gradient / count + penalty * self.weight
        self.bias.grad = gradient_bias / count
        return value / count + penalty / 2 * self.weight.square().sum()

    def solve(self, penalty: float, steps: int = 200, tolerance: float = 1e-5) -> int:
        """Minimises from the weights so far; returns the number of evaluations."""
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=steps, tolerance_grad=tolerance, tolerance_change=1e-9,
            history_size=10, line_search_fn="strong_wolfe",
        )  # fmt: skip
        optimizer.step(lambda: self.loss(penalty))
        return int(optimizer.state[self.weight]["func_evals"])

    def head(self) -> nn.Linear:
        """The weights so far as a head for features that are not standardised."""
        head = nn.utils.skip_init(nn.Linear, self.features.shape[1], self.classes, device=self.device)
        with torch.no_grad():
            head.weight.copy_(self.weight / self.spread)
            head.bias.copy_(self.bias - head.weight @ self.mean)
        return head


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    fit_rows: Tensor,
    held_rows: Tensor,
    device: torch.device,
    penalties: Sequence[float] = PENALTIES,
    say: Callable[[str], None] = print,
) -> tuple[nn.Linear, float, dict[float, float]]:
    """Chooses the penalty on held-out images, then fits on all.

    Strong penalties come first, each solution starting the next; of equally good ones the strongest is taken.

    Args:
        features: (B, D).
        labels: (B,) int64, 0 ... classes - 1.
        classes: C.
        fit_rows: (n,) images to fit on while choosing.
        held_rows: (m,) images to choose on.
        device: where to compute.
        penalties: one or more; one is taken as it is.
        say: takes a line for each penalty.

    Returns:
        The head, its penalty, and the top-1 accuracy on the held-out images of each penalty that was tried.

    Raises:
        ValueError: a penalty below 0, or none.
    """
    if not penalties or min(penalties) < 0:
        raise ValueError(f"penalties={list(penalties)}: one or more numbers, 0 or above")
    tried: dict[float, float] = {}
    falling = sorted(penalties, reverse=True)
    if len(falling) > 1:
        problem = Problem(features, labels, fit_rows, classes, device)
        for penalty in falling:
            evaluations = problem.solve(penalty)
            ranked = predict(problem.head(), features[held_rows], 1)[:, 0]
            tried[penalty] = float((ranked == labels[held_rows]).double().mean())
            say(f"penalty {penalty:g}: {tried[penalty]:.2%} of held-out images ({evaluations} evaluations)")
    best = max(tried, key=lambda penalty: (tried[penalty], penalty)) if tried else falling[0]
    whole = Problem(features, labels, torch.arange(len(features)), classes, device)
    for penalty in falling[: falling.index(best) + 1]:
        whole.solve(penalty)
    return whole.head(), best, tried
