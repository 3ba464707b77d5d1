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

from pretrain.knn import Cores
from transfer.classification.heads import predict

CHUNK = 8192
PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)


@dataclass
class Problem:
    """Standardised features and labels of some of the images, and the weights so far.

    Args:
        features: (B, D), any floating type.
        labels: (B,) int64.
        counts: (B,) bool: the images that count.
        classes: C.
        device: where to compute.
    """

    features: Tensor
    labels: Tensor
    counts: Tensor
    classes: int
    device: torch.device

    def __post_init__(self) -> None:
        self.number = int(self.counts.sum())
        self.starts = range(0, len(self.features), CHUNK)
        total = squares = torch.zeros(self.features.shape[1], dtype=torch.float64, device=self.device)
        for start in self.starts:
            x, _, counts = self.chunk(start)
            total, squares = total + x[counts].double().sum(0), squares + x[counts].double().square().sum(0)
        mean = total / self.number
        spread = (squares / self.number - mean.square()).clamp_min(0).sqrt()
        self.mean = mean.float()
        self.spread = torch.where(spread > 1e-6 * (1 + mean.abs()), spread, torch.ones_like(spread)).float()
        self.weight = torch.zeros(self.classes, len(mean), device=self.device, requires_grad=True)
        self.bias = torch.zeros(self.classes, device=self.device, requires_grad=True)

    def chunk(self, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features (n, D) float32, labels (n,) and whether they count (n,), of `CHUNK` rows from `start` on."""
        x, y, counts = (t[start : start + CHUNK].to(self.device) for t in (self.features, self.labels, self.counts))
        return x.float(), y, counts

    @torch.no_grad()
    def loss(self, penalty: float, cores: Cores) -> Tensor:
        """What is minimised; its gradient goes into weight.grad and bias.grad.

        With x' = (x - mean) / spread the logits are x W' + b', W' = W / spread, b' = b - W' mean, so features are used
        as they are; G = sum over images of (softmax - one-hot) gives dW = (G x - sum(G) mean) / spread.
        """
        raw = self.weight / self.spread
        shift = self.bias - raw @ self.mean

        @torch.no_grad()
        def of_chunk(start: int) -> tuple[Tensor, Tensor, Tensor]:
            x, y, counts = self.chunk(start)
            log_p = torch.addmm(shift, x, raw.T).log_softmax(1)
            error = log_p.exp()
            error[torch.arange(len(y), device=self.device), y] -= 1
            error *= counts[:, None]
            loss = -(log_p.gather(1, y[:, None])[:, 0] * counts).sum()
            return loss, error.T @ x, error.sum(0)

        values, gradients, bias_gradients = zip(*cores.map(of_chunk, self.starts), strict=True)
        value, gradient, gradient_bias = (sum(parts[1:], parts[0]) for parts in (values, gradients, bias_gradients))
        gradient = (gradient - torch.outer(gradient_bias, self.mean)) / self.spread
        self.weight.grad = gradient / self.number + penalty * self.weight
        self.bias.grad = gradient_bias / self.number
        return value / self.number + penalty / 2 * self.weight.square().sum()

    def solve(self, penalty: float, steps: int = 100, tolerance: float = 3e-4) -> int:
        """Minimises from the weights so far; returns the number of evaluations.

        Args:
            penalty: on the squared weights.
            steps: of L-BFGS, at most.
            tolerance: largest entry of the gradient at which it stops.
        """
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=steps, tolerance_grad=tolerance, tolerance_change=1e-9,
            history_size=10, line_search_fn="strong_wolfe",
        )  # fmt: skip
        with Cores(self.device) as cores:
            optimizer.step(lambda: self.loss(penalty, cores))
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
    held: Tensor,
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
        held: (m,) int64: the images to choose on.
        device: where to compute.
        penalties: one or more, 0 or above; one is taken as it is.
        say: takes a line for each penalty.

    Returns:
        The head, its penalty, and the top-1 accuracy on the held-out images of each penalty that was tried.
    """
    tried: dict[float, float] = {}
    falling = sorted(penalties, reverse=True)
    everything = torch.ones(len(features), dtype=torch.bool)
    if len(falling) > 1:
        problem = Problem(features, labels, everything.index_fill(0, held, False), classes, device)
        for penalty in falling:
            evaluations = problem.solve(penalty)
            ranked = predict(problem.head(), features[held], 1)[:, 0]
            tried[penalty] = float((ranked == labels[held]).double().mean())
            say(f"penalty {penalty:g}: {tried[penalty]:.2%} of held-out images ({evaluations} evaluations)")
    best = max(tried, key=lambda penalty: (tried[penalty], penalty)) if tried else falling[0]
    whole = Problem(features, labels, everything, classes, device)
    for penalty in falling[: falling.index(best) + 1]:
        whole.solve(penalty)
    return whole.head(), best, tried
