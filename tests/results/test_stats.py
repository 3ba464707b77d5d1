"""Statistics: false differences are rare, numbers are scipy's, corrections are those worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from results.stats import Comparison, compare, correct, paired_bootstrap


@pytest.mark.parametrize("n", [3, 5])
def test_two_rows_of_one_distribution_are_called_different_in_at_most_six_percent(n: int) -> None:
    rng = np.random.default_rng(0)
    pairs = rng.normal(80, 0.5, (2000, 2, n))
    verdicts = [compare(first, second).verdict for first, second in pairs]
    different = sum(verdict in ("higher", "lower") for verdict in verdicts)
    assert 0 < different <= 0.06 * 2000
    assert set(verdicts) == {"higher", "lower", "tied"}


def test_a_real_difference_is_found_with_its_direction() -> None:
    low, high = [80.0, 80.5, 79.5], [85.0, 85.5, 84.0]
    assert compare(high, low).verdict == "higher"
    assert compare(low, high).verdict == "lower"
    assert compare(low, high).difference == pytest.approx(-29 / 6)


@pytest.mark.filterwarnings("ignore:Precision loss")
@pytest.mark.parametrize(("first", "second"), [([80, 81, 83], [82, 84, 85, 90]), ([1, 2, 3], [2, 2, 2])])
def test_p_values_are_those_of_scipy(first: list[float], second: list[float]) -> None:
    expected = stats.ttest_ind(first, second, equal_var=False).pvalue
    assert compare(first, second).p == pytest.approx(expected, rel=1e-12)


def test_fewer_than_three_pretrainings_on_a_side_are_too_few() -> None:
    comparison = compare([10.0, 10.1], [90.0, 90.1, 90.2])
    assert (comparison.verdict, comparison.p, comparison.n) == ("n too small", None, (2, 3))


def test_rows_without_any_spread() -> None:
    assert compare([0.1] * 3, [0.1] * 3).verdict == "tied"
    assert compare([0.2] * 3, [0.1] * 3).verdict == "higher"


def test_holm_equals_an_example_worked_by_hand() -> None:
    # Sorted: 0.005, 0.01, 0.03, 0.04. Times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last is raised to 0.06.
    comparisons = [Comparison(1.0, (3, 3), p) for p in (0.01, None, 0.04, 0.03, 0.005)]
    corrected = [one.p for one in correct(comparisons)]
    assert corrected == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06), pytest.approx(0.02)]
    assert [one.verdict for one in correct(comparisons)] == ["higher", "n too small", "tied", "tied", "higher"]
    assert correct([Comparison(1.0, (3, 3), 0.9)] * 3) == [Comparison(1.0, (3, 3), 1.0)] * 3


def test_the_bootstrap_equals_a_plain_loop_and_depends_on_its_seed_alone() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(37) < 0.7, rng.random(37) < 0.5
    drawn, means = np.random.default_rng(3), []
    for _ in range(500):
        images = drawn.integers(0, 37, 37)
        means.append(np.mean(first[images].astype(float) - second[images].astype(float)))
    interval = paired_bootstrap(first, second, seed=3, resamples=500)
    assert interval.difference == pytest.approx(first.mean() - second.mean())
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert interval == paired_bootstrap(first, second, seed=3, resamples=500)
    assert interval != paired_bootstrap(first, second, seed=4, resamples=500)


def test_the_bootstrap_interval_holds_the_true_difference_about_95_times_in_100() -> None:
    rng = np.random.default_rng(2)
    intervals = [paired_bootstrap(rng.normal(0.3, 1, 100), rng.normal(0, 1, 100), resamples=300) for _ in range(200)]
    assert 180 <= sum(one.low <= 0.3 <= one.high for one in intervals) <= 198


def test_images_that_do_not_match_are_an_error() -> None:
    with pytest.raises(ValueError, match="same two or more test images"):
        paired_bootstrap(np.zeros(3), np.zeros(4))
