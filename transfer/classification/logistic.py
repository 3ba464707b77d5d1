"""Multinomial logistic regression on features, by L-BFGS, the penalty chosen on held-out images.

Shapes: B images, D feature width, C classes. On features standardised to mean 0 and standard deviation 1 it minimises

    mean cross-entropy + penalty / 2 * sum of squared weights

as scikit-learn's LogisticRegression does with C = 1 / (penalty * B). Measured against it (tests/benchmarks/
bench_classify.py, results/benchmarks/classify.jsonl): with 2,048 features and 1,000 classes scikit-learn takes 813 MiB
for 32,000 images and 1,625 MiB for 64,000, so 32 GiB for ImageNet. Here it is 0.5 GiB for any number of images, which
may be in a file and in half precision. On features of Fashion-MNIST this solver takes half the CPU time for the same
accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.features import Cores
from common.knn import accuracy
from transfer.classification.heads import predict
from transfer.classification.options import PENALTIES

CHUNK, FEW = 8192, 4  # images at a time; an eighth of that for FEW chunks or less, so that all cores have some
TOLERANCE = 1e-3  # a fit is done at this fraction of the largest gradient entry at weights of 0
STEPS = 300  # at most, of L-BFGS for each penalty
_AXES: dict[bytes, tuple[Tensor, Tensor]] = {}


class Solution(NamedTuple):
    """Evaluations that a minimisation took, and whether it converged within its steps."""

    evaluations: int
    converged: bool


@dataclass
class Problem:
    """The minimisation problem of some of the images, and its current weights.

    Args:
        features: (B, D), any floating type, in memory or mapped from a file; no copy is made.
        labels: (B,) int64.
        used: (B,) bool: the images that the problem consists of.
        classes: C.
        device: where to compute.
        like: a problem of nearly the same images, whose axes are used; default: axes of its own.
    """

    features: Tensor
    labels: Tensor
    used: Tensor
    classes: int
    device: torch.device
    like: Problem | None = None

    def __post_init__(self) -> None:
        self.images = int(self.used.sum())
        self.rows = CHUNK if len(self.features) > FEW * CHUNK else max(1, CHUNK // 8)
        self.starts = range(0, len(self.features), self.rows)
        total = squares = torch.zeros(self.features.shape[1], dtype=torch.float64, device=self.device)
        for start in self.starts:
            x, _, used = self.chunk(start)
            total, squares = total + x[used].double().sum(0), squares + x[used].double().square().sum(0)
        mean = total / self.images
        std = (squares / self.images - mean.square()).clamp_min(0).sqrt()
        self.mean = mean.float()
        self.std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std)).float()
        self.weight = torch.zeros(self.classes, len(mean), device=self.device, requires_grad=True)
        self.bias = torch.zeros(self.classes, device=self.device, requires_grad=True)
        with Cores(self.device) as cores:
            self.loss(0.0, cores)
        assert self.weight.grad is not None
        self.gradient_0 = self.weight.grad  # at weights of 0

    @property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Return eigenvalues (D,) and eigenvectors (D, D) of the correlation matrix.

        They take most of the time of a fit with few images and many features. The seeds of a benchmark share them: the
        last ones are kept, for features of the same mean and standard deviation.
        """
        if self.like is not None:
            return self.like.axes
        key = self.mean.cpu().numpy().tobytes() + self.std.cpu().numpy().tobytes() + str(self.device).encode()
        if key not in _AXES:
            correlation = torch.zeros(len(self.mean), len(self.mean), device=self.device)
            for start in self.starts:
                x, _, used = self.chunk(start)
                x = (x[used] - self.mean) / self.std
                correlation += x.T @ x / self.images
            _AXES.clear()
            _AXES[key] = torch.linalg.eigh(correlation)
        return _AXES[key]

    def chunk(self, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (n, D) float32, labels (n,) and which are used (n,), of `rows` rows from `start` on."""
        x, y, used = (t[start : start + self.rows].to(self.device) for t in (self.features, self.labels, self.used))
        return x.float(), y, used

    def terms(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each image (n,) and its gradient by the logits (n, C): softmax - one-hot."""
        log_p = logits.log_softmax(1)
        error = log_p.exp()
        error[torch.arange(len(labels), device=self.device), labels] -= 1
        return -log_p.gather(1, labels[:, None])[:, 0], error

    @torch.no_grad()
    def loss(self, penalty: float, cores: Cores) -> Tensor:
        """Return the objective; put its gradient into weight.grad and bias.grad.

        The logits of standardised features are x W' + b' with W' = W / std and b' = b - W' mean, so features are used
        as they are. With G, the gradient by the logits, summed over images, dW = (G x - sum(G) mean) / std.
        """
        raw = self.weight / self.std
        shift = self.bias - raw @ self.mean

        @torch.no_grad()
        def of_chunk(start: int) -> tuple[Tensor, Tensor, Tensor]:
            x, y, used = self.chunk(start)
            losses, error = self.terms(torch.addmm(shift, x, raw.T), y)
            error *= used[:, None]
            return (losses * used).sum(), error.T @ x, error.sum(0)

        sums: Sequence[Tensor] = ()
        for first in range(0, len(self.starts), cores.count):  # no more than one gradient per core at a time
            for parts in cores.map(of_chunk, self.starts[first : first + cores.count]):
                sums = [s.add_(part) for s, part in zip(sums, parts, strict=True)] if sums else parts
        value, gradient, gradient_bias = sums
        gradient = (gradient - torch.outer(gradient_bias, self.mean)) / self.std
        self.weight.grad = gradient / self.images + penalty * self.weight
        self.bias.grad = gradient_bias / self.images
        return value / self.images + penalty / 2 * self.weight.square().sum()

    def solve(self, penalty: float, tolerance: float = TOLERANCE, steps: int = STEPS) -> Solution:
        """Minimise from the current weights.

        Features are correlated, and L-BFGS on the weights themselves takes several times the steps. It works on V,
        weight = V P, with P = (S / C + penalty)^(-1/2) and S the correlation matrix: the curvature along all axes is
        then about 1 where the classes are equally likely. The objective stays the same.

        Args:
            penalty: on the squared weights.
            tolerance: converged at this fraction of the largest entry of V's gradient at weights of 0; a fixed bound
                would be looser the more classes there are.
            steps: at most, of L-BFGS.
        """
        values, axes = self.axes
        scale = (values.clamp_min(0) / self.classes + penalty).clamp_min(1e-6 / self.classes).sqrt()
        to_weight, to_v = (axes * factor @ axes.T for factor in (1 / scale, scale))
        v = (self.weight.detach() @ to_v).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [v, self.bias], max_iter=steps, tolerance_grad=tolerance * float((self.gradient_0 @ to_weight).abs().max()),
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
        # Else it stopped below the tolerance, or where float32 resolves no lower loss. torch limits evaluations too.
        return Solution(evaluations, state["n_iter"] < steps and evaluations < steps * 5 // 4)

    @torch.no_grad()
    def start_from(self, head: nn.Linear) -> None:
        """Set the weights to those of a head for features that are not standardised."""
        self.weight.copy_(head.weight * self.std)
        self.bias.copy_(head.bias + head.weight @ self.mean)

    def head(self) -> nn.Linear:
        """Return the current weights as a head for features that are not standardised."""
        head = nn.utils.skip_init(nn.Linear, self.features.shape[1], self.classes, device=self.device)
        with torch.no_grad():
            head.weight.copy_(self.weight / self.std)
            head.bias.copy_(self.bias - head.weight @ self.mean)
        return head


def near(features: Tensor, device: torch.device) -> Tensor:
    """Return features on a GPU that has twice the room for them, else as they are: they are read hundreds of times."""
    fits = device.type == "cuda" and 2 * features.nbytes <= torch.cuda.mem_get_info(device)[0]
    return features.to(device) if fits else features


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    held: Tensor,
    device: torch.device,
    penalties: Sequence[float] = PENALTIES,
    log: Callable[[str], None] = print,
    problem_type: type[Problem] = Problem,
    score: Callable[[nn.Linear], float] | None = None,
) -> tuple[nn.Linear, float, dict[float, float]]:
    """Choose the penalty on held-out images, then fit on all, starting from the best solution there.

    Large penalties come first, each solution starts the next; of equally good ones the largest is chosen.

    Args:
        features: (B, D).
        labels: (B,) int64, 0 ... C - 1.
        classes: C.
        held: (m,) int64: indices of the images to choose on.
        device: where to compute.
        penalties: one or more, 0 or above; a single one is used without a choice.
        log: called with a line for each penalty.
        problem_type: what is minimised.
        score: of a head on the held-out images, higher for better; default: top-1 accuracy.

    Returns:
        The head, its penalty, and the score of each penalty that was tried.
    """
    features = near(features, device)

    def top1(head: nn.Linear) -> float:
        return accuracy(predict(head, features[held.to(features.device)], 1), labels[held])

    tried: dict[float, float] = {}
    heads: dict[float, nn.Linear] = {}
    falling = sorted(penalties, reverse=True)
    everything = torch.ones(len(features), dtype=torch.bool)
    complete = problem_type(features, labels, everything, classes, device)
    if len(falling) > 1:
        problem = problem_type(features, labels, everything.index_fill(0, held, False), classes, device, complete)
        for penalty in falling:
            solution = problem.solve(penalty)
            heads[penalty] = problem.head()
            tried[penalty] = (score or top1)(heads[penalty])
            how = f"{solution.evaluations} evaluations" + ", not converged" * (not solution.converged)
            log(f"penalty {penalty:g}: {tried[penalty]:.2%} of {len(held)} held-out images ({how})")
    best = max(tried, key=lambda penalty: (tried[penalty], penalty)) if tried else falling[0]
    if tried and best in (falling[0], falling[-1]):
        end, more, beyond = (
            ("smallest", "smaller", best / 10) if best == falling[-1] else ("largest", "larger", 10 * best)
        )
        log(f"penalty {best:g} is the {end} of --penalties: a {more} one may be better, e.g. {beyond:g}")
    if best in heads:
        complete.start_from(heads[best])
    solution = complete.solve(best)
    if not solution.converged:
        log(f"penalty {best:g}: not converged after {solution.evaluations} evaluations; larger ones are easier")
    return complete.head(), best, tried
