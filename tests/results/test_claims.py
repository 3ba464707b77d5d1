"""The paper's claims: verdicts on invented results, spelled out, and the table made from records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from results.claims import Pair, claims, verdict
from results.frame import frame, published
from results.grid import Entry
from results.record import Record
from results.stats import Comparison

from .conftest import found_in, record, write_all

PAPERS = published(Path(__file__).parents[2] / "results" / "published.csv")
HIGHER, LOWER, TIED = (Comparison(gap, (3, 3), p) for gap, p in ((2.0, 0.01), (-2.0, 0.01), (0.1, 0.7)))
SMALL = Comparison(9.0, (3, 2), None)


def judge(*comparisons: Comparison, one_is_enough: bool = False) -> str:
    return verdict([Pair("a step", Entry([]), Entry([])) for _ in comparisons], comparisons, one_is_enough)


@pytest.mark.parametrize(
    ("comparison", "text"),
    [
        (HIGHER, "yes; +2.0, a step (p = 0.01)"),
        (LOWER, "no; −2.0, a step (p = 0.01)"),
        (TIED, "tied; +0.1, a step (p = 0.7)"),
        (SMALL, "n too small: 3 against 2 pre-trainings; +9.0, a step"),
    ],
)
def test_the_verdict_on_one_comparison(comparison: Comparison, text: str) -> None:
    assert judge(comparison) == judge(comparison, one_is_enough=True) == text


@pytest.mark.parametrize(
    ("comparisons", "all_are", "one_is"),
    [  # whether the first is higher in all pairs, and whether it is in one
        ([HIGHER, HIGHER], "yes; higher in 2 of 2", "yes; higher in 2 of 2"),
        ([HIGHER, LOWER, TIED], "in part; higher in 1, lower in 1, tied in 1 of 3",
         "yes; higher in 1, lower in 1, tied in 1 of 3"),
        ([LOWER, TIED], "no; lower in 1, tied in 1 of 2", "tied; lower in 1, tied in 1 of 2"),
        ([LOWER, LOWER], "no; lower in 2 of 2", "no; lower in 2 of 2"),
        ([TIED, SMALL], "tied; tied in 1, n too small in 1 of 2", "tied; tied in 1, n too small in 1 of 2"),
        ([SMALL, SMALL], "n too small: 3 against 2 pre-trainings", "n too small: 3 against 2 pre-trainings"),
    ],
)  # fmt: skip
def test_the_verdict_on_several_comparisons(comparisons: list[Comparison], all_are: str, one_is: str) -> None:
    assert judge(*comparisons) == all_are
    assert judge(*comparisons, one_is_enough=True) == one_is


def test_what_was_not_measured_has_no_row() -> None:
    assert claims(frame({}), PAPERS).rows == []
    assert claims(found_in([record("unimoco", 0, {"top1": 0.5}, label_ratio=1.0)]), PAPERS).rows == []


def labels(seeds: int, task: str = "linear", method: str = "unimoco", **metrics: float) -> list[Record]:
    """Return records with all labels, one per seed, with a little spread."""
    spread = np.linspace(-1e-4, 1e-4, seeds)
    return [
        record(method, seed, {name.replace("_", "/"): value + spread[seed] for name, value in metrics.items()}, task,
               label_ratio=1.0, epochs=4.0)
        for seed in range(seeds)
    ]  # fmt: skip


def test_the_table_shows_published_results_beside_ours(study: list[Record]) -> None:
    third = [
        record("unimoco", 2, {"top1": top1}, label_ratio=ratio, epochs=4.0) for ratio, top1 in ((0.0, 0.5), (1.0, 0.7))
    ]
    more = [
        *third,
        *labels(3, "fashion-fpn", bbox_AP=0.3, segm_AP=0.2),
        *labels(3, "fashion-fpn", "cross_entropy", bbox_AP=0.2, segm_AP=0.2),
        *labels(1, method="supcon", top1=0.65),
        record("unimoco", 0, {"top1": 0.1}, label_ratio=0.3, epochs=8.0),  # another recipe
    ]
    rows = {title: texts for title, *texts in claims(found_in([*study, *more]), PAPERS).rows}
    assert rows["more labels, better linear classification"] == [
        "71.1, 72.0, 75.1, 76.2, 76.4 with 0, 10, 30, 60, 100 % of the labels",
        "50.0, 60.0, 70.0 with 0, 10, 100 % of the labels",
        "yes; +20.0, 100 % against 0 % of the labels (p = 5e-13)",
    ]
    assert rows["UniMoCo detects better than cross-entropy"] == [
        "39.6 against 38.2",
        "Fashion Scenes, FPN AP box 30.0 against 20.0; Fashion Scenes, FPN AP mask 20.0 against 20.0",
        "in part; higher in 1, tied in 1 of 2",
    ]
    assert rows["UniCon is better than SupCon"] == [
        "–", "linear top-1 70.0 against 65.0", "n too small: 3 against 1 pre-trainings; +5.0, linear top-1",
    ]  # fmt: skip
    assert "detection is best below 100 %" not in rows


def test_a_large_difference_of_two_pretrainings_decides_nothing(study: list[Record]) -> None:
    ((*_, answer),) = claims(found_in(study), PAPERS).rows
    assert answer == "n too small: 2 against 2 pre-trainings; +20.0, 100 % against 0 % of the labels"


def test_single_checkpoints_are_compared_over_test_images_and_called_that(tmp_path: Path) -> None:
    rng, accuracies, records = np.random.default_rng(0), [], []
    for method, accuracy in (("unimoco", 0.8), ("supcon", 0.5)):
        one = record(method, 0, {"top1": accuracy}, label_ratio=1.0, per_image=f"{method}.npz")
        write_all(tmp_path, [one])
        np.savez((tmp_path / one.path).with_name(f"{method}.npz"), top1=rng.random(1000) < accuracy)
        accuracies.append(np.load((tmp_path / one.path).with_name(f"{method}.npz"))["top1"].mean())
        records.append(one)
    ((*_, text),) = claims(frame({tmp_path / one.path: one for one in records}), PAPERS).rows
    answer, _, images = str(text).split("; ")
    assert answer == "n too small: 1 against 1 pre-trainings"
    assert images.startswith("linear top-1, one checkpoint each, interval over test images: [")
    low, high = (float(number) for number in images.partition("[")[2].rstrip("]").split(", "))
    assert 20 < low < 100 * (accuracies[0] - accuracies[1]) < high < 40
