"""Verdicts: numbers are scipy's and a plain loop's, copies of one checkpoint are tied, words say what is unknown."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from results.verdict import Measured, judge

IMAGES = 412


def synthetic(rng: np.random.Generator, name: str, accuracy: float, seeds: int = 3, noise: float = 0.004) -> Measured:
    """Return seeds of a benchmark: each image is right with a probability of its own, each seed trains another head."""
    difficulty = np.random.default_rng(7).normal(0, 0.35, IMAGES)  # of the test images, the same for all checkpoints
    rows = [
        (np.clip(accuracy + rng.normal(0, noise) + difficulty, 0, 1) > rng.random(IMAGES)).astype(float)
        for _ in range(seeds)
    ]
    return Measured(name, [[float(row.mean()) for row in rows]], np.mean(rows, 0))


def test_the_numbers_are_those_of_scipy_and_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    mine, other = synthetic(rng, "mine", 0.80), synthetic(rng, "random", 0.68)
    (verdict,) = judge([other, mine])
    assert verdict.first is mine
    a, b = np.array(mine.values[0]), np.array(other.values[0])
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert verdict.difference == pytest.approx(a.mean() - b.mean())
    assert verdict.error == pytest.approx(verdict.difference / welch.statistic)
    drawn, means = np.random.default_rng(0), []
    for _ in range(2000):
        chosen = drawn.integers(0, IMAGES, IMAGES)
        means.append((mine.per_image - other.per_image)[chosen].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    assert verdict.images is not None
    assert (verdict.images.low, verdict.images.high) == pytest.approx((low, high), abs=1e-12)
    p = 2 * (1 + sum(mean <= 0 for mean in means)) / 2001
    assert verdict.p == pytest.approx(max(welch.pvalue, p))
    assert str(verdict) == (
        f"mine beats random by {100 * (a.mean() - b.mean()):.1f} ± {100 * verdict.error:.1f} points "
        f"({100 * a.mean():.1f} and {100 * b.mean():.1f}; 3 seeds each; paired bootstrap over 412 test images: 95 % "
        f"{100 * low:.1f} to {100 * high:.1f}). One pre-training of mine and of random: how far others would lie from "
        "it is unknown."
    )


@pytest.mark.fault("figures that mean nothing", "tables", "two copies of one checkpoint compared, 100 times")
@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("per_image", [True, False])
def test_two_copies_of_one_checkpoint_are_tied(noise: float, per_image: bool) -> None:
    tied = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        sides = [synthetic(rng, name, 0.8, noise=noise) for name in ("one", "copy")]
        if not per_image:
            sides = [Measured(side.name, side.values) for side in sides]
        (verdict,) = judge(sides)
        tied += "are tied" in str(verdict)
    assert tied >= 95


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    found = [judge([synthetic(rng, "a", 0.85), synthetic(rng, "b", 0.7)])[0] for _ in range(20)]
    assert sum(verdict.differs and verdict.first.name == "a" for verdict in found) >= 18


def test_one_seed_a_side_is_too_few_where_the_benchmark_draws_at_random() -> None:
    rng = np.random.default_rng(2)
    mine, other = synthetic(rng, "mine", 0.9, seeds=1), synthetic(rng, "random", 0.5, seeds=1)
    text = str(judge([mine, other])[0])
    assert text.startswith("n too small to compare mine and random: ")
    assert "each side needs 3 measurements" in text
    assert "paired bootstrap over 412 test images" in text


def test_knn_draws_nothing_so_the_test_images_decide() -> None:
    rng = np.random.default_rng(3)
    mine, other = (
        Measured(one.name, one.values, one.per_image, drawn=False)
        for one in (synthetic(rng, "mine", 0.9, seeds=1), synthetic(rng, "dino", 0.6, seeds=1))
    )
    (verdict,) = judge([mine, other])
    assert verdict.differs
    assert verdict.error is None
    assert verdict.p == pytest.approx(2 / 2001)
    assert not judge([mine, mine])[0].differs
    inits = Measured("random", [[0.30], [0.31], [0.32]], other.per_image, drawn=False)
    (verdict,) = judge([mine, inits])
    assert verdict.p == pytest.approx(max(2 / 2001, stats.ttest_1samp([0.30, 0.31, 0.32], mine.values[0][0]).pvalue))
    assert "1 measurement and 3 pre-trainings" in str(verdict)
    assert "One pre-training of mine:" in str(verdict)
    assert "n too small" in str(judge([Measured("a", [[0.5]], drawn=False), Measured("b", [[0.6]], drawn=False)])[0])


def test_pre_trainings_count_where_both_have_several_and_pairs_are_corrected() -> None:
    ours = Measured("ours", [[0.80, 0.82], [0.81, 0.81], [0.79, 0.83]])
    base = Measured("base", [[0.70], [0.71], [0.72]])
    last = Measured("last", [[0.69], [0.71], [0.70]])
    verdicts = judge([base, ours, last])
    assert [(one.first.name, one.second.name) for one in verdicts] == [
        ("ours", "base"),
        ("ours", "last"),
        ("base", "last"),
    ]
    raw = [
        stats.ttest_ind(a.sample, b.sample, equal_var=False).pvalue
        for a, b in ((ours, base), (ours, last), (base, last))
    ]
    assert verdicts[2].p == pytest.approx(raw[2])
    assert min(verdicts[0].p or 1, verdicts[1].p or 1) == pytest.approx(3 * min(raw))
    assert "unknown" not in str(verdicts[0])
    assert "3 pre-trainings each" in str(verdicts[0])
    assert "base and last are tied: 1.0 ± 0.8 points apart" in str(verdicts[2])
