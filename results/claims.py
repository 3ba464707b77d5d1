"""What the paper claims beside what was measured here, in sentences that are made from the records.

A difference counts where it is larger than the spread: the larger sample standard deviation of the two figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import pandas as pd

from results.frame import by_ratio, usual
from results.grid import MISSING, Cell, Grid
from results.tasks import METRICS, TASKS

LINEAR, DETECTION = "linear", "fashion-fpn"
SOURCE = "UniMoCo README"  # how the source of the published figures begins in published.csv
NOTES = [
    "Published: UniMoCo README, github.com/dddzg/unimoco at ccac034 (ResNet-50; ImageNet, linear: top-1; COCO, C4 1x: "
    "AP box); of SupCon the paper's abstract gives no figure.",
    "Here: linear top-1 and AP box on Fashion Scenes where nothing else is said; means in %. A difference counts where "
    "it is larger than the spread, the larger sample standard deviation of the two figures; else it is undecided.",
]

Pair = tuple[str, Cell, Cell]  # what was measured, of UniMoCo, of its rival


def claims(rows: pd.DataFrame, papers: pd.DataFrame) -> Grid:
    """The table, with the claims that something was measured for.

    Args:
        rows: of `frame`.
        papers: of `published`.
    """
    rows, papers = usual(rows), papers[papers["source"].str.startswith(SOURCE)]
    linear, detection = points(rows, LINEAR), points(rows, DETECTION)
    supervised, supcon = pairs(rows, "cross_entropy", [DETECTION]), pairs(rows, "supcon", TASKS)
    theirs = {task: _series(_published(papers, task)) for task in (LINEAR, DETECTION)}
    box = (_published(papers, DETECTION, method)[1.0] for method in ("unimoco", "cross_entropy"))
    against = "{:.1f} against {:.1f}".format(*box)
    found: list[tuple[str, str, list[Pair] | dict[float, Cell], str]] = [
        ("more labels, better linear classification", theirs[LINEAR], linear, labels_help(linear)),
        ("detection is best below 100 %", theirs[DETECTION], detection, best_below_all(detection)),
        ("UniMoCo detects better than cross-entropy", against, supervised, lead(supervised)),
        ("UniCon is better than SupCon", MISSING, supcon, lead(supcon)),
    ]
    grid = Grid("claims", "The paper's claims", ["the paper's claim", "published", "measured here", "seen here"])
    grid.notes = NOTES
    for title, figures, ours, verdict in found:
        if verdict:
            told = _told(ours) if isinstance(ours, list) else _series({r: c.mean or 0.0 for r, c in ours.items()})
            grid.rows.append((title, [Cell(text=text) for text in (figures, told, verdict)]))
    return grid


def labels_help(measured: Mapping[float, Cell]) -> str:
    """Whether a metric rises with the share of labels; empty with fewer than two shares.

    Args:
        measured: by share of labels, 0 to 1.
    """
    if len(measured) < 2:
        return ""
    ratios = sorted(measured)
    first, last = ratios[0], ratios[-1]

    def step(a: float, b: float) -> str:
        return f"{difference(measured[a], measured[b])} from {_share(a)} to {_share(b)}"

    drops = [step(a, b) for a, b in pairwise(ratios) if _gap(measured[a], measured[b]) < 0]
    rises = _gap(measured[first], measured[last]) > 0 and counts(measured[first], measured[last])
    steps = f", but {', '.join(drops)}" if drops else ", a rise at every step"
    return f"{'yes' if rises else 'no'}: {step(first, last)}{steps}"


def best_below_all(measured: Mapping[float, Cell]) -> str:
    """Whether the best share of labels is below 1; empty where 1 or all others were not measured."""
    if 1.0 not in measured or len(measured) < 2:
        return ""
    best = max((ratio for ratio in measured if ratio < 1), key=lambda ratio: measured[ratio].mean or 0.0)
    ahead, clear = _gap(measured[1.0], measured[best]) > 0, counts(measured[1.0], measured[best])
    verdict = ("yes" if ahead else "no") if clear else "undecided"
    gap = difference(measured[1.0], measured[best])
    return f"{verdict}: {_share(best)}, best of the others, is {gap} against 100 %"


def lead(measured: list[Pair]) -> str:
    """In how many measurements UniMoCo is ahead of its rival; empty where there is none."""
    if not measured:
        return ""
    clear = [_gap(theirs, ours) > 0 for _, ours, theirs in measured if counts(theirs, ours)]
    ahead, behind, level = sum(clear), len(clear) - sum(clear), len(measured) - len(clear)
    decided = "in part" if ahead else "no" if behind else "undecided"
    verdict = "yes" if ahead == len(measured) else decided
    return f"{verdict}: ahead in {ahead} of {len(measured)}, behind in {behind}, undecided in {level}"


def points(rows: pd.DataFrame, task: str) -> dict[float, Cell]:
    """The headline of a task by UniMoCo's share of labels."""
    chosen = rows[(rows["task"] == task) & (rows["metric"] == TASKS[task].metrics[0])]
    found = {}
    for ratio, pretraining in sorted(by_ratio(chosen).items()):
        same = chosen[chosen["pretraining"] == pretraining]
        found[ratio] = Cell.of(same["value"], same["trained"])
    return found


def pairs(rows: pd.DataFrame, rival: str, tasks: Iterable[str]) -> list[Pair]:
    """UniMoCo and another method, both with all labels, in every headline that both were measured in."""
    found = []
    for task in tasks:
        for metric in TASKS[task].headline:
            chosen = rows[(rows["task"] == task) & (rows["metric"] == metric)]
            ours = chosen[chosen["pretraining"] == by_ratio(chosen).get(1.0)]
            theirs = chosen[chosen["pretraining"].map(lambda p: (p.method, p.label_ratio) == (rival, 1.0)).astype(bool)]
            if len(ours) and len(theirs):
                cells = [Cell.of(same["value"], same["trained"]) for same in (ours, theirs)]
                found.append((f"{TASKS[task].title} {METRICS.get(metric, metric)}", cells[0], cells[1]))
    return found


def difference(of: Cell, to: Cell) -> str:
    """How far a figure lies above another, and the spread: "+0.4 (spread 0.6)"."""
    std = _spread(of, to)
    return f"{_gap(of, to):+.1f} ({'no spread known' if std is None else f'spread {std:.1f}'})".replace("-", "−")


def counts(one: Cell, other: Cell) -> bool:
    """Whether two figures differ by more than the spread; without one nothing counts."""
    std = _spread(one, other)
    return std is not None and abs(_gap(one, other)) > std


def _gap(of: Cell, to: Cell) -> float:
    return (to.mean or 0.0) - (of.mean or 0.0)


def _spread(one: Cell, other: Cell) -> float | None:
    return max((cell.std for cell in (one, other) if cell.std is not None and cell.n > 1), default=None)


def _published(papers: pd.DataFrame, task: str, method: str = "unimoco") -> dict[float, float]:
    same = papers[(papers["task"] == TASKS[task].paper) & (papers["metric"] == TASKS[task].metrics[0])]
    same = same[same["method"] == method]
    return dict(zip(same["label_ratio"], same["value"], strict=True))


def _share(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def _series(values: Mapping[float, float]) -> str:
    """ "71.1, 72.0, 76.4 with 0, 10, 100 % of the labels"."""
    figures = ", ".join(f"{value:.1f}" for value in values.values())
    return f"{figures} with {', '.join(f'{100 * ratio:.3g}' for ratio in values)} % of the labels"


def _told(measured: list[Pair]) -> str:
    return "; ".join(f"{title} {ours.mean:.1f} against {theirs.mean:.1f}" for title, ours, theirs in measured)
