"""The paper's claims: verdicts of made-up figures, spelled out, and the table made from records."""

from __future__ import annotations

from pathlib import Path

import pytest

from results.claims import best_below_all, claims, labels_help, lead
from results.frame import frame, published
from results.grid import Cell
from results.record import Record

from .conftest import record

PAPERS = published(Path(__file__).parents[2] / "results" / "published.csv")


def cell(mean: float, std: float | None = 0.2) -> Cell:
    return Cell(mean, std, 1 if std is None else 3)


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ((50.0, 51.0, 52.0), "yes: +2.0 (spread 0.2) from 0 % to 100 %, a rise at every step"),
        ((50.0, 49.5, 52.0), "yes: +2.0 (spread 0.2) from 0 % to 100 %, but −0.5 (spread 0.2) from 0 % to 10 %"),
        ((50.0, 50.05, 50.1), "no: +0.1 (spread 0.2) from 0 % to 100 %, a rise at every step"),
        ((50.0, 52.0, 49.0), "no: −1.0 (spread 0.2) from 0 % to 100 %, but −3.0 (spread 0.2) from 10 % to 100 %"),
    ],
)
def test_whether_labels_help(figures: tuple[float, ...], told: str) -> None:
    assert labels_help(dict(zip((0.0, 0.1, 1.0), map(cell, figures), strict=True))) == told


@pytest.mark.parametrize(
    ("ten", "every", "told"),
    [  # of 10 and 100 % of the labels; 0 %: 40
        (cell(51.0), cell(50.0), "yes: 10 %, best of the others, is +1.0 (spread 0.2) against 100 %"),
        (cell(51.0), cell(50.0, 1.5), "undecided: 10 %, best of the others, is +1.0 (spread 1.5) against 100 %"),
        (cell(50.5), cell(52.0, None), "no: 10 %, best of the others, is −1.5 (spread 0.2) against 100 %"),
        (cell(51, None), cell(50, None),
         "undecided: 10 %, best of the others, is +1.0 (no spread known) against 100 %"),
    ],
)  # fmt: skip
def test_whether_a_part_of_the_labels_is_best(ten: Cell, every: Cell, told: str) -> None:
    assert best_below_all({0.0: cell(40.0), 0.1: ten, 1.0: every}) == told


def test_a_lead_counts_beyond_the_spread_only() -> None:
    ahead, behind, level = (("a", cell(51.0), cell(50.0)), ("b", cell(50.0), cell(51.0)), ("c", cell(50.1), cell(50.0)))
    assert lead([ahead, behind, level]) == "in part: ahead in 1 of 3, behind in 1, undecided in 1"
    assert lead([ahead, ahead]).startswith("yes: ahead in 2 of 2")
    assert lead([level, behind]).startswith("no: ahead in 0 of 2")
    assert lead([level, level]).startswith("undecided: ahead in 0 of 2")


def test_what_was_not_measured_is_not_told() -> None:
    assert labels_help({1.0: cell(50.0)}) == best_below_all({0.0: cell(1.0)}) == best_below_all({}) == lead([]) == ""
    assert claims(frame([]), PAPERS).rows == []


def test_the_table_sets_published_figures_beside_ours(study: list[Record]) -> None:
    more = [
        record("supcon", 0, {"top1": 0.65}, label_ratio=1.0, epochs=4.0),
        record("unimoco", 0, {"bbox/AP": 0.3, "segm/AP": 0.2}, task="fashion-fpn", label_ratio=1.0, epochs=4.0),
        record("cross_entropy", 0, {"bbox/AP": 0.2, "segm/AP": 0.1}, task="fashion-fpn", label_ratio=1.0, epochs=4.0),
        record("unimoco", 0, {"top1": 0.1}, label_ratio=0.3, epochs=8.0),  # another recipe
    ]
    rows = {title: [str(text) for text in cells] for title, cells in claims(frame([*study, *more]), PAPERS).rows}
    assert rows["more labels, better linear classification"] == [
        "71.1, 72.0, 75.1, 76.2, 76.4 with 0, 10, 30, 60, 100 % of the labels",
        "50.0, 60.0, 70.0 with 0, 10, 100 % of the labels",
        "yes: +20.0 (spread 0.0) from 0 % to 100 %, a rise at every step",
    ]
    assert rows["UniMoCo detects better than cross-entropy"] == [
        "39.6 against 38.2",
        "Fashion Scenes, FPN AP box 30.0 against 20.0; Fashion Scenes, FPN AP mask 20.0 against 10.0",
        "undecided: ahead in 0 of 2, behind in 0, undecided in 2",
    ]
    assert rows["UniCon is better than SupCon"][0::2] == [
        "–", "yes: ahead in 1 of 1, behind in 0, undecided in 0",
    ]  # fmt: skip
    assert "detection is best below 100 %" not in rows
