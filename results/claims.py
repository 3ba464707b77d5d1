"""The paper's claims beside our results, judged by the test of results/stats.py over pre-trainings.

All comparisons of the table are one family for Holm's correction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from results.frame import Measurements
from results.grid import MISSING, Entry, Grid
from results.registry import METRICS, TASKS
from results.stats import LEVEL, MIN_PRETRAININGS, Comparison, Interval, compare, correct, paired_bootstrap

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
    """Two backbones in one measurement; the claim says that the first is higher.

    Attributes:
        name: what is measured, or which backbones are compared.
        first: measurements of the first.
        second: measurements of the second.
        images: bootstrap over test images; only where both are a single checkpoint.
    """

    name: str
    first: Entry
    second: Entry
    images: Interval | None = None


Judged = Sequence[tuple[Pair, Comparison]]


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
    table: list[tuple[str, str, str, list[Pair], Callable[[Judged], str]]] = [
        ("more labels, better linear classification", theirs[LINEAR], _series(linear), steps(linear), labels_help),
        ("detection is best below 100 %", theirs[DETECTION], _series(detection), against_all(detection), best_below),
        ("UniMoCo detects better than cross-entropy", against, _means(supervised), supervised, ahead),
        ("UniCon is better than SupCon", MISSING, _means(supcon), supcon, ahead),
    ]
    judged = iter(correct([compare(one.first.means, one.second.means) for *_, pairs, _ in table for one in pairs]))
    grid = Grid("claims", "Claims of the paper", ["claim of the paper", "published", "ours", "does it hold in ours?"])
    for title, published, ours, pairs, verdict in table:
        if comparisons := [(pair, next(judged)) for pair in pairs]:
            grid.rows.append((title, [Entry(text=text) for text in (published, ours, verdict(comparisons))]))
    grid.notes = NOTES if grid.rows else []
    return grid


def steps(measured: Mapping[float, Entry]) -> list[Pair]:
    """Return the most labels against the fewest, then each label ratio against the one before."""
    ratios = sorted(measured)
    if len(ratios) < 2:
        return []
    return [_ratios(measured, ratios[-1], ratios[0]), *(_ratios(measured, b, a) for a, b in pairwise(ratios))]


def against_all(measured: Mapping[float, Entry]) -> list[Pair]:
    """Return each smaller label ratio against all labels; nothing where all labels were not measured."""
    return [_ratios(measured, ratio, 1.0) for ratio in sorted(measured) if ratio < 1] if 1.0 in measured else []


def rivals(found: Measurements, method: str, tasks: Iterable[str]) -> list[Pair]:
    """Return UniMoCo against another method, both with all labels, in each metric that both were measured in."""
    pairs = []
    for task in tasks:
        chosen = found.of_task(task)
        ours = chosen.by_ratio().get(1.0)
        if ours is None:
            continue
        recipe = chosen.backbones[ours].recipe[:-1]  # all but recipe_id, which covers the method
        theirs = [
            key for key, one in chosen.backbones.items()
            if (one.method, one.label_ratio, one.recipe[:-1]) == (method, 1.0, recipe)
        ]  # fmt: skip
        theirs.sort(key=lambda key: -chosen.rows.loc[chosen.rows["backbone_id"] == key, "pretraining"].nunique())
        for metric in (name for name in TASKS[task].metrics if name in (TASKS[task].metrics[0], "segm/AP")):
            for rival in theirs[:1]:
                first, second = (_entry(chosen, key, metric) for key in (ours, rival))
                if first.means and second.means:
                    name = f"{TASKS[task].title} {METRICS.get(metric, metric)}"
                    pairs.append(Pair(name, first, second, _over_images(chosen, ours, rival, metric)))
    return pairs


def labels_help(judged: Judged) -> str:
    """Return whether a metric rises from the fewest to the most labels, and at which steps it falls."""
    (pair, whole), *others = judged
    drops = [f"{step.name} ({_gap(one)}, {_reason(one)})" for step, one in others if one.difference < 0]
    fall = f"; the mean falls {', '.join(drops)}" if drops else "; the mean rises at every step"
    return f"{_answer([whole])}; {_gap(whole)} {pair.name}{_tested(whole)}{fall}"


def best_below(judged: Judged) -> str:
    """Return whether some label ratio below 1 is higher than all labels; "no" where every one is lower."""
    verdicts = [one.verdict for _, one in judged]
    pair, best = max(judged, key=lambda item: (item[1].verdict == "higher", item[1].difference))
    undecided = "lower" in verdicts and set(verdicts) != {"lower"} and best.verdict != "higher"
    answer = "tied" if undecided else _answer([best] if best.verdict == "higher" else [one for _, one in judged])
    return f"{answer}; best of the others: {_gap(best)} {pair.name}{_tested(best)}"


def ahead(judged: Judged) -> str:
    """Return in how many measurements the first is higher than the second."""
    comparisons = [one for _, one in judged]
    verdicts = [one.verdict for one in comparisons]
    counts = [f"{verdict} in {verdicts.count(verdict)}" for verdict in ("higher", "lower", "tied", "n too small")
              if verdict in verdicts]  # fmt: skip
    images = [f"{pair.name}, one checkpoint each, over test images: {_interval(pair.images)}"
              for pair, _ in judged if pair.images]  # fmt: skip
    count = [f"{', '.join(counts)} of {len(judged)}"] * (set(verdicts) != {"n too small"})
    return "; ".join([_answer(comparisons), *count, *images])


def by_ratio(found: Measurements, task: str) -> dict[float, Entry]:
    """Return the leading metric of a task by UniMoCo's label ratio."""
    chosen = found.of_task(task)
    return {ratio: _entry(chosen, key, TASKS[task].metrics[0]) for ratio, key in chosen.by_ratio().items()}


def _answer(comparisons: Sequence[Comparison]) -> str:
    """Return "yes" where the first is higher in all, "no" where it is lower in some and higher in none ..."""
    verdicts = {one.verdict for one in comparisons}
    if verdicts == {"higher"}:
        return "yes"
    if "higher" in verdicts:
        return "in part"
    if "lower" in verdicts:
        return "no"
    if verdicts == {"n too small"}:
        sizes = sorted({one.n for one in comparisons})
        return f"n too small: {' or '.join(f'{first} against {second}' for first, second in sizes)} pre-trainings"
    return "tied"


def _reason(one: Comparison) -> str:
    return one.verdict if one.p is None else f"{one.verdict}, p = {one.p:.2g}"


def _tested(one: Comparison) -> str:
    return "" if one.p is None else f" (p = {one.p:.2g})"


def _gap(one: Comparison) -> str:
    return f"{one.difference:+.1f}".replace("-", "−")


def _interval(one: Interval) -> str:
    low, difference, high = (f"{100 * value:+.1f}".replace("-", "−") for value in (one.low, one.difference, one.high))
    return f"{difference} [{low}, {high}]"


def _ratios(measured: Mapping[float, Entry], first: float, second: float) -> Pair:
    return Pair(f"from {100 * second:.3g} % to {100 * first:.3g} %", measured[first], measured[second])


def _entry(found: Measurements, backbone_id: str, metric: str) -> Entry:
    return Entry.of(found.rows[(found.rows["backbone_id"] == backbone_id) & (found.rows["metric"] == metric)])


def _over_images(found: Measurements, first: str, second: str, metric: str) -> Interval | None:
    """Return the bootstrap over test images where each side is one record that kept the metric per image."""
    rows = found.rows[found.rows["metric"] == metric]
    files = [rows.loc[rows["backbone_id"] == key, "per_image"].to_list() for key in (first, second)]
    if any(len(paths) != 1 or paths[0] is None for paths in files):
        return None
    arrays = []
    for (path,) in files:
        with np.load(path) as content:
            if metric not in content:
                return None
            arrays.append(content[metric])
    return paired_bootstrap(*arrays)


def _published(papers: pd.DataFrame, task: str, method: str = "unimoco") -> dict[float, float]:
    same = papers[(papers["task"] == TASKS[task].paper) & (papers["metric"] == TASKS[task].metrics[0])]
    same = same[same["method"] == method]
    return dict(zip(same["label_ratio"], same["value"], strict=True))


def _series(values: Mapping[float, Entry] | Mapping[float, float]) -> str:
    """Return e.g. "71.1, 72.0, 76.4 with 0, 10, 100 % of the labels"."""
    means = (value if isinstance(value, float) else value.mean or 0.0 for value in values.values())
    ratios = ", ".join(f"{100 * ratio:.3g}" for ratio in values)
    return f"{', '.join(f'{mean:.1f}' for mean in means)} with {ratios} % of the labels"


def _means(pairs: Iterable[Pair]) -> str:
    return "; ".join(f"{pair.name} {pair.first.mean:.1f} against {pair.second.mean:.1f}" for pair in pairs)
