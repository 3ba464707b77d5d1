"""Plots: what was measured against the share of labels, beside the paper's curve; the course of each pre-training.

SVG without dates and with fixed identifiers: the same records give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.tasks import METRICS, TASKS

STYLE: Any = {"svg.hashsalt": "unimoco", "svg.fonttype": "none", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3}


def draw(rows: pd.DataFrame, papers: pd.DataFrame, curves: Path, folder: Path) -> list[Path]:
    """Draws everything into `folder`; returns the files."""
    made = []
    with mpl.rc_context(STYLE):
        for name, task in TASKS.items():
            figure = label_ratio(rows[rows["task"] == name], papers, task.paper or name)
            if figure is not None:
                made.append(_save(figure, folder / f"label_ratio_{name}.svg"))
        if runs := sorted(curves.glob("*.jsonl")):
            made.append(_save(courses(runs), folder / "curves.svg"))
    return made


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def label_ratio(rows: pd.DataFrame, papers: pd.DataFrame, paper: str) -> Figure | None:
    """Headline metric of one task against the share of labels, with the baselines as lines; None without two points.

    Args:
        rows: of `frame`, one task.
        papers: all published figures.
        paper: the task of theirs to draw beside it.
    """
    if not len(rows):
        return None
    task = TASKS[rows["task"].iloc[0]]
    rows = rows[rows["metric"] == task.metrics[0]]
    longest = {p for p in rows["pretraining"] if p.method == "unimoco"}
    ratios = {p.label_ratio for p in longest}
    if len(ratios) < 2:
        return None
    theirs = papers[(papers["task"] == paper) & (papers["method"] == "unimoco")]
    theirs = theirs[theirs["metric"] == theirs["metric"].iloc[0]] if len(theirs) else theirs
    figure, axes = plt.subplots(
        1, 2 if len(theirs) else 1, figsize=(9.5 if len(theirs) else 5, 3.6), squeeze=False, layout="constrained"
    )
    ours = axes[0, 0]
    for number, (protocol, group) in enumerate(rows.groupby("protocol")):
        _ours(ours, group, f"C{number}", str(protocol))
    ours.set(title=f"{task.title}: measured here", ylabel=f"{METRICS[task.metrics[0]]}, %")
    if len(theirs):
        axes[0, 1].plot(
            100 * theirs["label_ratio"], theirs["value"], "s--", color="tab:grey", label="UniMoCo, ResNet-50"
        )
        axes[0, 1].set(title=f"{paper}: as published", ylabel=f"{METRICS.get(theirs['metric'].iloc[0])}, %")
        axes[0, 1].legend(fontsize=8)
    for one in axes.flat:
        one.set(xlabel="labels kept in pre-training, %")
    return figure


def _ours(axes: Axes, rows: pd.DataFrame, colour: str, protocol: str) -> None:
    """A curve with its band of one sample standard deviation, and a line for each baseline."""
    usual = rows["pretraining"].map(lambda p: p.epochs)[rows["pretraining"].map(lambda p: p.method) == "unimoco"].mode()
    points = []
    for p in sorted(set(rows["pretraining"])):
        values = rows.loc[rows["pretraining"] == p, "value"]
        mean, std = values.mean(), values.std(ddof=1)
        if p.method == "unimoco" and p.epochs == usual.iloc[0]:
            points.append((100 * p.label_ratio, mean, 0.0 if np.isnan(std) else std))
        elif p.method in ("random", "cross_entropy"):
            style = ":" if p.method == "random" else "-."
            axes.axhline(mean, color=colour, linestyle=style, linewidth=1, label=p.title)
    x, y, spread = np.array(sorted(points)).T
    axes.plot(x, y, "o-", color=colour, label="UniMoCo")
    axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.2)
    axes.legend(fontsize=8, title=protocol[:60], title_fontsize=7)


def courses(runs: list[Path]) -> Figure:
    """Loss beside chance level, and kNN on held-out images, by step, for every pre-training."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(runs)))
    for path, colour in zip(runs, colours, strict=True):
        rows = pd.read_json(path, lines=True)
        steps = rows.dropna(subset=["loss"])
        left.plot(steps["step"], steps["loss"], color=colour, linewidth=1.2, label=path.stem)
        left.plot(steps["step"], steps["chance"], color=colour, linestyle="--", linewidth=0.8)
        if "knn" in rows:
            knn = rows.dropna(subset=["knn"])
            right.plot(knn["step"], 100 * knn["knn"], color=colour, marker="o", markersize=3, label=path.stem)
    left.set(xlabel="step", ylabel="loss", title="loss (dashed: chance level)", ylim=(0, None))
    right.set(xlabel="step", ylabel="top-1, %", title="kNN on held-out images")
    right.legend(fontsize=7, ncols=2)
    return figure
