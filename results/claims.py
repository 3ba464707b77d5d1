"""The paper's claims beside our results, judged by the test of results/stats.py over pre-trainings.

All comparisons of the table are one family for Holm's correction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from results.frame import by_ratio, usual
from results.grid import MISSING, Entry, Grid, over_images
from results.registry import METRICS, TASKS
from results.stats import LEVEL, MIN_PRETRAININGS, Comparison, compare, correct

LINEAR, DETECTION = "linear", "fashion-fpn"
SOURCE = "UniMoCo README"  # how the source of the published results begins in published.csv
NOTES = [
    "Published: UniMoCo README, github.com/dddzg/unimoco at ccac034 (ResNet-50; ImageNet, linear: top-1; COCO, C4 1x: "
    "AP box); the paper's abstract gives no number for SupCon.",
    "Ours: linear top-1 and AP box on Fashion Scenes unless stated otherwise; means over pre-trainings in %.",
    f"Two backbones differ by Welch's t-test over pre-trainings at {100 * LEVEL:g} %, Holm-corrected over this table; "
    f"it needs at least {MIN_PRETRAININGS} pre-trainings of both (else “n too small”). “Tied”: not different.",
]


class Pair(NamedTuple):
    """Two backbones in one measurement, of which the claim says that the first is higher.

    Attributes:
        name: the metric, or the two backbones.
        first: measurements of the first.
        second: measurements of the second.
    """

    name: str
    first: Entry
    second: Entry

    def __str__(self) -> str:
        return f"{self.name} {self.first.mean:.1f} against {self.second.mean:.1f}"


def claims(rows: pd.DataFrame, papers: pd.DataFrame) -> Grid:
    """Return the table, with the claims that there are measurements for.

    Args:
        rows: of `frame`.
        papers: of `published`.
    """
    rows, papers = usual(rows), papers[papers["source"].str.startswith(SOURCE)]
    linear, detection = ratio_entries(rows, LINEAR), ratio_entries(rows, DETECTION)
    supervised, supcon = rivals(rows, "cross_entropy", [DETECTION]), rivals(rows, "supcon", list(TASKS))
    theirs = {task: _series(_published(papers, task, "unimoco")) for task in (LINEAR, DETECTION)}
    boxes = [f"{_published(papers, DETECTION, method)[1.0]:.1f}" for method in ("unimoco", "cross_entropy")]
    most_to_fewest = [_ratios(linear, max(linear), min(linear))] if len(linear) > 1 else []
    parts_to_all = [_ratios(detection, ratio, 1.0) for ratio in detection if ratio < 1 and 1.0 in detection]
    table = [  # claim, published, ours if not the pairs, pairs, whether it is about all or any of them
        ("more labels, better linear classification", theirs[LINEAR], _means(linear), most_to_fewest, all),
        ("detection is best below 100 %", theirs[DETECTION], _means(detection), parts_to_all, any),
        ("UniMoCo detects better than cross-entropy", " against ".join(boxes), "", supervised, all),
        ("UniCon is better than SupCon", MISSING, "", supcon, all),
    ]
    judged = iter(correct([compare(pair.first.means, pair.second.means) for *_, pairs, _ in table for pair in pairs]))
    header = ["claim of the paper", "published", "ours", "does it hold here?"]
    grid = Grid("claims", "Claims of the paper", header, [], NOTES, align="l")
    for title, published, ours, pairs, quantifier in table:
        if pairs:
            answer = verdict(pairs, [next(judged) for _ in pairs], one_is_enough=quantifier is any)
            grid.rows.append([title, published, ours or "; ".join(map(str, pairs)), answer])
    return grid


def verdict(pairs: Sequence[Pair], comparisons: Sequence[Comparison], one_is_enough: bool = False) -> str:
    """Return in words whether the first of each pair is higher.

    Args:
        pairs: what is compared.
        comparisons: their results.
        one_is_enough: the claim holds where the first of any pair is higher, and fails where all are lower.
    """
    count = Counter(one.verdict for one in comparisons)
    total = len(comparisons)
    if count["n too small"] == total:
        sizes = sorted({one.n for one in comparisons})
        answer = f"n too small: {' or '.join(f'{n} against {m}' for n, m in sizes)} pre-trainings"
    elif count["higher"]:
        answer = "yes" if one_is_enough or count["higher"] == total else "in part"
    else:
        answer = "no" if count["lower"] and (not one_is_enough or count["lower"] == total) else "tied"
    details = []
    if total == 1:
        p = "" if comparisons[0].p is None else f" (p = {comparisons[0].p:.2g})"
        difference = f"{comparisons[0].difference:+.1f}".replace("-", "−")
        details = [f"{difference}, {pairs[0].name}{p}"]
    elif count["n too small"] < total:
        details = [f"{', '.join(f'{word} in {n}' for word, n in count.items())} of {total}"]
    for pair in pairs:
        if images := over_images(pair.first, pair.second):
            details.append(f"{pair.name}, one checkpoint each, interval over test images: {images}")
    return "; ".join([answer, *details])


def ratio_entries(rows: pd.DataFrame, task: str) -> dict[float, Entry]:
    """Return the leading metric of a task by UniMoCo's label ratio."""
    rows = rows[(rows["task"] == task) & (rows["metric"] == TASKS[task].metrics[0])]
    return {ratio: Entry.of(rows[rows["backbone_id"] == key]) for ratio, key in by_ratio(rows).items()}


def rivals(rows: pd.DataFrame, method: str, tasks: Sequence[str]) -> list[Pair]:
    """Return UniMoCo against another method, both with all labels, in each leading metric measured with both."""
    pairs = []
    for task in tasks:
        of_task = rows[rows["task"] == task]
        ours = of_task[of_task["backbone_id"] == by_ratio(of_task).get(1.0)]
        theirs = of_task[
            (of_task["method"] == method) & (of_task["label_ratio"] == 1) & of_task["recipe"].isin(ours["recipe"])
        ]
        most = theirs.groupby("backbone_id", sort=False)["pretraining"].nunique()
        theirs = theirs[theirs["backbone_id"] == most.idxmax()] if len(most) else theirs
        for metric in TASKS[task].metrics:
            first, second = (one[one["metric"] == metric] for one in (ours, theirs))
            if metric in (TASKS[task].metrics[0], "segm/AP") and len(first) and len(second):
                name = f"{TASKS[task].title} {METRICS.get(metric, metric)}"
                pairs.append(Pair(name, Entry.of(first), Entry.of(second)))
    return pairs


def _ratios(entries: Mapping[float, Entry], first: float, second: float) -> Pair:
    return Pair(f"{100 * first:.3g} % against {100 * second:.3g} % of the labels", entries[first], entries[second])


def _published(papers: pd.DataFrame, task: str, method: str) -> dict[float, float]:
    same = papers[["task", "metric", "method"]] == [TASKS[task].paper, TASKS[task].metrics[0], method]
    return dict(papers[same.all(axis=1)].set_index("label_ratio")["value"])


def _series(values: Mapping[float, float]) -> str:
    """Return e.g. "71.1, 72.0, 76.4 with 0, 10, 100 % of the labels"."""
    ratios = ", ".join(f"{100 * ratio:.3g}" for ratio in values)
    return f"{', '.join(f'{value:.1f}' for value in values.values())} with {ratios} % of the labels"


def _means(entries: Mapping[float, Entry]) -> str:
    return _series({ratio: entry.mean for ratio, entry in entries.items()})
