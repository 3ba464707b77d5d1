"""The paper's claims beside our results, judged by the test of results/stats.py over pre-trainings.

All comparisons of the table are one family for Holm's correction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from results.frame import Measurements
from results.grid import MISSING, Entry, Grid, interval_text, over_images
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


@dataclass(frozen=True)
class Pair:
    """Two backbones in one measurement, of which the claim says that the first is higher.

    Attributes:
        name: the metric, or the two backbones.
        first: measurements of the first.
        second: measurements of the second.
    """

    name: str
    first: Entry
    second: Entry


def claims(found: Measurements, papers: pd.DataFrame) -> Grid:
    """Return the table, with the claims that there are measurements for.

    Args:
        found: of `frame`.
        papers: of `published`.
    """
    usual, papers = found.usual(), papers[papers["source"].str.startswith(SOURCE)]
    linear, detection = by_ratio(usual, LINEAR), by_ratio(usual, DETECTION)
    supervised, supcon = rivals(usual, "cross_entropy", [DETECTION]), rivals(usual, "supcon", TASKS)
    theirs = {task: _series(_published(papers, task)) for task in (LINEAR, DETECTION)}
    box = (_published(papers, DETECTION, method)[1.0] for method in ("unimoco", "cross_entropy"))
    against = "{:.1f} against {:.1f}".format(*box)
    most_to_fewest = [_ratios(linear, max(linear), min(linear))] if len(linear) > 1 else []
    parts_to_all = [_ratios(detection, ratio, 1.0) for ratio in detection if ratio < 1 and 1.0 in detection]
    table = [
        ("more labels, better linear classification", theirs[LINEAR], _means(linear), most_to_fewest, all),
        ("detection is best below 100 %", theirs[DETECTION], _means(detection), parts_to_all, any),
        ("UniMoCo detects better than cross-entropy", against, _both(supervised), supervised, all),
        ("UniCon is better than SupCon", MISSING, _both(supcon), supcon, all),
    ]
    judged = iter(correct([compare(one.first.means, one.second.means) for row in table for one in row[3]]))
    grid = Grid("claims", "Claims of the paper", ["claim of the paper", "published", "ours", "does it hold here?"])
    for title, published, ours, pairs, quantifier in table:
        if pairs:
            answer = verdict(pairs, [next(judged) for _ in pairs], quantifier is any)
            grid.rows.append((title, [Entry(text=text) for text in (published, ours, answer)]))
    grid.notes = NOTES if grid.rows else []
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
        details = [f"{_signed(comparisons[0].difference)}, {pairs[0].name}{p}"]
    elif count["n too small"] < total:
        details = [f"{', '.join(f'{word} in {n}' for word, n in count.items())} of {total}"]
    for pair in pairs:
        if images := over_images(pair.first, pair.second):
            details.append(f"{pair.name}, one checkpoint each, interval over test images: {interval_text(images)}")
    return "; ".join([answer, *details])


def by_ratio(found: Measurements, task: str) -> dict[float, Entry]:
    """Return the leading metric of a task by UniMoCo's label ratio."""
    chosen = found.of_task(task)
    return {ratio: _entry(chosen, key, TASKS[task].metrics[0]) for ratio, key in chosen.by_ratio().items()}


def rivals(found: Measurements, method: str, tasks: Iterable[str]) -> list[Pair]:
    """Return UniMoCo against another method, both with all labels, in each leading metric measured with both."""
    pairs = []
    for task in tasks:
        chosen = found.of_task(task)
        ours = chosen.by_ratio().get(1.0)
        recipe = chosen.backbones[ours].recipe[:-1] if ours else ()  # all but recipe_id, which covers the method
        theirs = [
            key for key, one in chosen.backbones.items()
            if (one.method, one.label_ratio, one.recipe[:-1]) == (method, 1.0, recipe)
        ]  # fmt: skip
        if ours is None or not theirs:
            continue
        rival = max(theirs, key=lambda key: chosen.rows.loc[chosen.rows["backbone_id"] == key, "pretraining"].nunique())
        for metric in (name for name in TASKS[task].metrics if name in (TASKS[task].metrics[0], "segm/AP")):
            first, second = (_entry(chosen, key, metric) for key in (ours, rival))
            if first.means and second.means:
                name = f"{TASKS[task].title} {METRICS.get(metric, metric)}"
                pairs.append(Pair(name, first, second))
    return pairs


def _entry(found: Measurements, backbone_id: str, metric: str) -> Entry:
    rows = found.rows[(found.rows["backbone_id"] == backbone_id) & (found.rows["metric"] == metric)]
    return Entry.of(rows, (backbone_id, metric))


def _ratios(entries: Mapping[float, Entry], first: float, second: float) -> Pair:
    return Pair(f"{100 * first:.3g} % against {100 * second:.3g} % of the labels", entries[first], entries[second])


def _published(papers: pd.DataFrame, task: str, method: str = "unimoco") -> dict[float, float]:
    same = papers[(papers["task"] == TASKS[task].paper) & (papers["metric"] == TASKS[task].metrics[0])]
    same = same[same["method"] == method]
    return dict(zip(same["label_ratio"], same["value"], strict=True))


def _series(values: Mapping[float, float]) -> str:
    """Return e.g. "71.1, 72.0, 76.4 with 0, 10, 100 % of the labels"."""
    ratios = ", ".join(f"{100 * ratio:.3g}" for ratio in values)
    return f"{', '.join(f'{value:.1f}' for value in values.values())} with {ratios} % of the labels"


def _means(entries: Mapping[float, Entry]) -> str:
    return _series({ratio: entry.mean or 0.0 for ratio, entry in entries.items()})


def _both(pairs: Iterable[Pair]) -> str:
    return "; ".join(f"{pair.name} {pair.first.mean:.1f} against {pair.second.mean:.1f}" for pair in pairs)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
