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
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.features import Cores
from transfer.classification.heads import predict

CHUNK = 8192
PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)
TOLERANCE = 1e-3  # share of the steepest slope at weights of 0 at which a fit is done
STEPS = 300  # of L-BFGS for each penalty, at most


class Solution(NamedTuple):
    """How a minimisation went: evaluations it took, and whether it came to rest before the last step."""

    evaluations: int
    converged: bool


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
        with Cores(self.device) as cores:
            self.loss(0.0, cores)
        assert self.weight.grad is not None
        self.start = self.weight.grad
        correlation = torch.zeros(len(mean), len(mean), device=self.device)
        for start in self.starts:
            x, _, counts = self.chunk(start)
            x = (x[counts] - self.mean) / self.spread
            correlation += x.T @ x / self.number
        self.axes = torch.linalg.eigh(correlation)

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

    def solve(self, penalty: float, tolerance: float = TOLERANCE, steps: int = STEPS) -> Solution:
        """Minimises from the weights so far.

        Features are correlated, and L-BFGS on the weights themselves would take several times the steps. It works on V,
        weight = V P, with P = (S / C + penalty)^(-1/2) and S the correlation matrix: the curvature along all axes is
        then about 1 where the classes are equally likely. What is minimised stays the same.

        Args:
            penalty: on the squared weights.
            tolerance: share of the largest entry of V's gradient at weights of 0 at which it stops; a fixed bound would
                mean less the more classes there are.
            steps: of L-BFGS, at most.
        """
        values, axes = self.axes
        scale = (values.clamp_min(0) / self.classes + penalty).clamp_min(1e-6 / self.classes).sqrt()
        to_weight, to_v = (axes * factor @ axes.T for factor in (1 / scale, scale))
        v = (self.weight.detach() @ to_v).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [v, self.bias], max_iter=steps, tolerance_grad=tolerance * float((self.start @ to_weight).abs().max()),
            tolerance_change=1e-9, history_size=10, line_search_fn="strong_wolfe",
        )  # fmt: skip

        @torch.no_grad()
        def evaluate() -> Tensor:
            self.weight.copy_(v @ to_weight)
            loss = self.loss(penalty, cores)
            assert self.weight.grad is not None
            v.grad = self.weight.grad @ to_weight
            return loss

        with Cores(self.device) as cores:
            optimizer.step(evaluate)
        with torch.no_grad():
            self.weight.copy_(v @ to_weight)
        state = optimizer.state[v]
        evaluations = int(state["func_evals"])
        # At rest it is below the tolerance, or where float32 knows no lower loss; torch has a limit on evaluations too.
        return Solution(evaluations, state["n_iter"] < steps and evaluations < steps * 5 // 4)

    @torch.no_grad()
    def go_on_from(self, head: nn.Linear) -> None:
        """Takes the weights of a head for features that are not standardised."""
        self.weight.copy_(head.weight * self.spread)
        self.bias.copy_(head.bias + head.weight @ self.mean)

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
    """Chooses the penalty on held-out images, then fits on all, starting from what was best there.

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
    heads: dict[float, nn.Linear] = {}
    falling = sorted(penalties, reverse=True)
    everything = torch.ones(len(features), dtype=torch.bool)
    if len(falling) > 1:
        problem = Problem(features, labels, everything.index_fill(0, held, False), classes, device)
        for penalty in falling:
            solution = problem.solve(penalty)
            heads[penalty] = problem.head()
            ranked = predict(heads[penalty], features[held], 1)[:, 0]
            tried[penalty] = float((ranked == labels[held]).double().mean())
            how = f"{solution.evaluations} evaluations" + ", not converged" * (not solution.converged)
            say(f"penalty {penalty:g}: {tried[penalty]:.2%} of held-out images ({how})")
    best = max(tried, key=lambda penalty: (tried[penalty], penalty)) if tried else falling[0]
    if tried and best in (falling[0], falling[-1]):
        end, more, beyond = (
            ("smallest", "smaller", best / 10) if best == falling[-1] else ("largest", "larger", 10 * best)
        )
        say(f"penalty {best:g} is the {end} of --penalties: a {more} one may be better, e.g. {beyond:g}")
    whole = Problem(features, labels, everything, classes, device)
    if best in heads:
        whole.go_on_from(heads[best])
    solution = whole.solve(best)
    if not solution.converged:
        say(f"penalty {best:g}: not converged after {solution.evaluations} evaluations; larger ones are easier")
    return whole.head(), best, tried
