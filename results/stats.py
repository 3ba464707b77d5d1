"""Whether backbones differ: Welch's t-test over pre-trainings, and the bootstrap over test images.

There are three kinds of spread, and no function mixes them: over pre-trainings (seeds of pre-training), over benchmark
seeds of one checkpoint, and over test images. Two backbones differ only by `compare`, which looks at pre-trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.05  # of the test, after correction
MIN_PRETRAININGS = 3  # per backbone: with two, the estimate of their spread is worth nothing


@dataclass(frozen=True)
class Comparison:
    """One backbone compared with another.

    Attributes:
        difference: mean of the first minus mean of the second, over pre-trainings.
        n: numbers of pre-trainings of both.
        p: p-value of Welch's t-test; None where there are too few pre-trainings.
    """

    difference: float
    n: tuple[int, int]
    p: float | None

    @property
    def differs(self) -> bool:
        """Return whether the two differ by the test."""
        return self.p is not None and self.p < LEVEL and self.difference != 0

    @property
    def verdict(self) -> str:
        """Return "higher" or "lower" where the first differs from the second, else "tied" or "n too small"."""
        if self.differs:
            return "higher" if self.difference > 0 else "lower"
        return "n too small" if self.p is None else "tied"


@dataclass(frozen=True)
class Interval:
    """A difference with its 95 % interval, of fractions; printed in %.

    Attributes:
        difference: of the means.
        low: end of the interval.
        high: end of the interval.
        p: twice the part of the resamples on the other side of 0, and at least 2 / (resamples + 1).
    """

    difference: float
    low: float
    high: float
    p: float = 1.0

    def __str__(self) -> str:
        return f"[{100 * self.low:.1f}, {100 * self.high:.1f}]".replace("-", "−")


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare two backbones by Welch's t-test, two-sided, without correction for multiple comparisons.

    Args:
        first: one value per pre-training of the first backbone, each the mean over its benchmark seeds.
        second: those of the second backbone.
    """
    n = len(first), len(second)
    difference = float(np.mean(first) - np.mean(second))
    if min(n) < MIN_PRETRAININGS:
        return Comparison(difference, n, None)
    if np.ptp(first) == np.ptp(second) == 0:  # t is 0/0 or infinite
        return Comparison(difference, n, 1.0 if first[0] == second[0] else 0.0)
    moments = [moment for one in (first, second) for moment in (np.mean(one), np.std(one, ddof=1), len(one))]
    return Comparison(difference, n, float(stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue))


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Replace the p-values of a family of comparisons by Holm's, which bound the chance of any false difference.

    Holm (1979): the k-th smallest of m p-values is multiplied by m - k + 1 and is at least as large as the one before.
    Comparisons without a p-value do not count.
    """
    tested = sorted((one.p, index) for index, one in enumerate(comparisons) if one.p is not None)
    corrected, largest = list(comparisons), 0.0
    for rank, (p, index) in enumerate(tested):
        largest = min(1.0, max(largest, (len(tested) - rank) * p))
        corrected[index] = replace(comparisons[index], p=largest)
    return corrected


def paired_bootstrap(
    first: NDArray[np.floating], second: NDArray[np.floating], seed: int = 0, resamples: int = 2_000
) -> Interval:
    """Return how far the mean of the first lies above the second's, with its percentile interval over test images.

    This speaks about two checkpoints, not about their pre-trainings.

    Args:
        first: one value per test image, shape (N,).
        second: those of the other checkpoint for the same images in the same order, shape (N,).
        seed: of the resampling.
        resamples: their number.

    Raises:
        ValueError: the arrays are not of one length, or hold fewer than two images.
    """
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"bootstrap of {first.shape} and {second.shape}: needs the same two or more test images")
    differences = first.astype(float) - second.astype(float)
    found = stats.bootstrap(
        (differences,), np.mean, n_resamples=resamples, batch=100, method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    interval, means = found.confidence_interval, found.bootstrap_distribution
    other = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (1 + other) / (resamples + 1))
    return Interval(float(differences.mean()), float(interval.low), float(interval.high), p)


def paired_interval(first: NDArray[np.floating], second: NDArray[np.floating]) -> Interval | None:
    """Return how far the mean of the first lies above the second's, with its 95 % interval by the paired t-test.

    Args:
        first: one value per pre-training, shape (N,).
        second: another measurement of the same pre-trainings in the same order, shape (N,).

    Returns:
        None where there are fewer than MIN_PRETRAININGS.
    """
    if len(first) < MIN_PRETRAININGS:
        return None
    found = stats.ttest_rel(first, second)
    low, high = found.confidence_interval(1 - LEVEL)
    return Interval(float(np.mean(first - second)), float(low), float(high), float(found.pvalue))
