"""Whether checkpoints differ on one data set, in plain words.

    X beats random by 4.1 ± 0.6 points (86.1 and 82.0; 3 seeds each; paired bootstrap over 412 test images: 95 % 3.0 to
    5.2).

A difference is claimed only where it is larger than chance by both tests that the measurements allow, at 5 %,
Holm-corrected over all pairs: Welch's t-test over repeated measurements, of which each side needs three, and the paired
bootstrap over the test images. The bootstrap trusts few images too much: where d of them tell two checkpoints apart, p
is at least 2^(1 - d), the chance that all of these favour one side. The measurements of a side are its pre-trainings,
where it has several; else the benchmark seeds of its one checkpoint, and the verdict says that other pre-trainings are
unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from results.stats import LEVEL, MIN_PRETRAININGS, Comparison, Interval, compare, correct, paired_bootstrap

FEWEST = 6  # test images that must differ: 2^(1 - 5) is above 5 %


@dataclass(frozen=True)
class Measured:
    """The measurements of one backbone on one data set, by one metric.

    Attributes:
        name: of the backbone.
        values: of each pre-training, the metric by benchmark seed, fractions.
        per_image: the metric of each test image, (N,), the mean over all runs; None where it has no such values.
        drawn: whether the benchmark draws anything at random; kNN does not, so one measurement is all there is.
    """

    name: str
    values: Sequence[Sequence[float]]
    per_image: NDArray[np.floating] | None = None
    drawn: bool = True

    @property
    def sample(self) -> list[float]:
        """Return repeated measurements: one value per pre-training, or of a single one the values of its seeds."""
        return [float(np.mean(seeds)) for seeds in self.values] if len(self.values) > 1 else [*self.values[0]]

    @property
    def single(self) -> bool:
        """Return whether there is one pre-training only."""
        return len(self.values) == 1

    @property
    def enough(self) -> bool:
        """Return whether the spread of the measurements is known: there are three, or there is none."""
        return len(self.sample) >= MIN_PRETRAININGS or (self.single and not self.drawn)

    @property
    def count(self) -> str:
        """Return the number of measurements, in words."""
        n = len(self.sample)
        kind = "pre-training" if not self.single else "seed" if self.drawn else "measurement"
        return f"{n} {kind}{'s' * (n > 1)}"


@dataclass(frozen=True)
class Verdict:
    """One backbone compared with another.

    Attributes:
        first: the one with the higher mean.
        second: the other.
        difference: of their means, not negative, a fraction.
        error: standard error of the difference over repeated measurements; None where none of the two has a spread.
        p: the larger of the p-values of both tests; None where there are too few measurements.
        images: the difference over test images; None where there are no values per image.
        apart: number of test images with different values.
    """

    first: Measured
    second: Measured
    difference: float
    error: float | None
    p: float | None
    images: Interval | None
    apart: int = 0

    @property
    def differs(self) -> bool:
        """Return whether the first is higher by both tests."""
        return self.p is not None and self.p < LEVEL and self.difference > 0

    def __str__(self) -> str:
        one, other = self.first, self.second
        points = f"{100 * self.difference:.1f}" + (f" ± {100 * self.error:.1f}" if self.error is not None else "")
        means = [f"{100 * float(np.mean(side.sample)):.1f}" for side in (one, other)]
        facts = [f"{means[0]} and {means[1]}"]
        facts.append(f"{one.count} each" if one.count == other.count else f"{one.count} and {other.count}")
        if self.images is not None:
            low, high = (f"{100 * end:.1f}".replace("-", "−") for end in (self.images.low, self.images.high))
            images = len(one.per_image if one.per_image is not None else ())
            facts.append(f"paired bootstrap over {images} test images: 95 % {low} to {high}")
            if 0 < self.apart < FEWEST:
                facts.append(f"they differ in {self.apart} test images, and fewer than {FEWEST} can never tell")
        if self.p is None:
            few = f"each side needs {MIN_PRETRAININGS} measurements"
            text = f"n too small to compare {one.name} and {other.name}: {points} points apart ({few}; "
        elif self.differs:
            text = f"{one.name} beats {other.name} by {points} points ("
        else:
            text = f"{one.name} and {other.name} are tied: {points} points apart ("
        alone = [side.name for side in (one, other) if side.single]
        unknown = f" One pre-training of {' and of '.join(alone)}: how far others would lie from it is unknown."
        return f"{text}{'; '.join(facts)}).{unknown if alone else ''}"


def judge(measured: Sequence[Measured]) -> list[Verdict]:
    """Compare all pairs of backbones, the pair with the highest mean first.

    Raises:
        ValueError: values per image are of different test images.
    """
    ordered = sorted(measured, key=lambda one: -float(np.mean(one.sample)))
    verdicts = [_compare(first, second) for first, second in combinations(ordered, 2)]
    corrected = correct([Comparison(one.difference, (0, 0), one.p) for one in verdicts])
    return [replace(one, p=other.p) for one, other in zip(verdicts, corrected, strict=True)]


def _compare(first: Measured, second: Measured) -> Verdict:
    difference = float(np.mean(first.sample) - np.mean(second.sample))
    images, apart = None, 0
    if first.per_image is not None and second.per_image is not None:
        images = paired_bootstrap(first.per_image, second.per_image)
        apart = int(np.count_nonzero(first.per_image != second.per_image))
    repeated = max(len(first.sample), len(second.sample)) > 1
    error = math.sqrt(sum(_variance(side) for side in (first, second))) if repeated else None
    p = None
    if first.enough and second.enough:
        p = max(_welch(first, second) if repeated else 0.0, images.p if images else 0.0)
        p = max(p, _chance(apart)) if images else p
        if not repeated and images is None:
            p = None  # two numbers, and nothing that says how certain they are
    return Verdict(first, second, difference, error, p, images, apart)


def _chance(apart: int) -> float:
    """Return the p-value of the sign test where all images that differ favour one side; no other case has less."""
    return min(1.0, 2.0 ** (1 - apart))


def _variance(side: Measured) -> float:
    """Return the variance of the mean of a side; 0 of a single measurement."""
    return float(np.var(side.sample, ddof=1)) / len(side.sample) if len(side.sample) > 1 else 0.0


def _welch(first: Measured, second: Measured) -> float:
    """Return the p-value of Welch's t-test; a side with one value, which nothing random enters, has no variance.

    Both sides have a known spread (`Measured.enough`).
    """
    one, other = first.sample, second.sample
    if (p := compare(one, other).p) is not None:
        return p
    if np.ptp(one) == np.ptp(other) == 0:  # t is 0/0 or infinite
        return 1.0 if one[0] == other[0] else 0.0
    several, alone = (other, one) if len(one) == 1 else (one, other)
    return float(stats.ttest_1samp(several, alone[0]).pvalue)
