"""Plots: what was measured against the share of labels, beside the paper's curve; the course of each pre-training.

SVG without dates and with fixed identifiers: the same records give the same bytes.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.frame import by_ratio, headlines
from results.grid import Cell
from results.tasks import METRICS, PAPER_TITLES, TASKS

STYLE: Any = {"svg.hashsalt": "unimoco", "svg.fonttype": "none", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3}


def draw(rows: pd.DataFrame, papers: pd.DataFrame, curves: Path, folder: Path) -> list[Path]:
    """Draws everything into `folder`; returns the files."""
    made = []
    with mpl.rc_context(STYLE):
        for name, task in TASKS.items():
            figure = label_ratio(rows[rows["task"] == name], papers, task.paper or name)
            if figure is not None:
                made.append(_save(figure, folder / f"label_ratio_{name}.svg"))
        if (figure := every_task(rows)) is not None:
            made.insert(0, _save(figure, folder / "label_ratios.svg"))
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
    if max((_ratios(group) for _, group in rows.groupby("protocol")), default=0) < 2:
        return None
    theirs = papers[(papers["task"] == paper) & (papers["method"] == "unimoco")]
    theirs = theirs[theirs["metric"] == theirs["metric"].iloc[0]] if len(theirs) else theirs
    figure, axes = plt.subplots(
        1, 2 if len(theirs) else 1, figsize=(9.5 if len(theirs) else 5, 4.6), squeeze=False, layout="constrained"
    )
    ours = axes[0, 0]
    several = [(protocol, group) for protocol, group in rows.groupby("protocol") if _ratios(group) > 1]
    for number, (protocol, group) in enumerate(several):
        _ours(ours, group, f"C{number}")
        title = textwrap.shorten(str(protocol), 60, placeholder=" …")
        ours.legend(fontsize=7, title=title, title_fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    ours.set(title=f"{task.title}: measured here", ylabel=f"{METRICS[task.metrics[0]]}, %")
    if len(theirs):
        axes[0, 1].plot(
            100 * theirs["label_ratio"], theirs["value"], "s--", color="tab:grey", label="UniMoCo, ResNet-50"
        )
        axes[0, 1].set(
            title=f"{PAPER_TITLES.get(paper, paper)}: as published",
            ylabel=f"{METRICS.get(theirs['metric'].iloc[0])}, %",
        )
        axes[0, 1].legend(fontsize=8)
    for one in axes.flat:
        one.set(xlabel="labels kept in pre-training, %")
    return figure


def every_task(rows: pd.DataFrame) -> Figure | None:
    """The first metric of each task against the share of labels, a panel each; None where no task has two shares.

    Args:
        rows: of `frame`, all tasks.
    """
    rows = headlines(rows)
    panels = {name: group for name in TASKS if _ratios(group := rows[rows["task"] == name]) > 1}
    if not panels:
        return None
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(down, across, figsize=(3.6 * across, 2.9 * down), squeeze=False, layout="constrained")
    for one, (name, group) in zip(axes.flat[: len(panels)], panels.items(), strict=True):
        _ours(one, group, "C0")
        metric = TASKS[name].metrics[0]
        one.set(title=TASKS[name].title, ylabel=f"{METRICS[metric]}, %", xlabel="labels kept, %")
    for unused in axes.flat[len(panels) :]:
        unused.axis("off")
    handles = {
        label: handle for one in axes.flat for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=9, ncols=4, frameon=False)
    return figure


def _ratios(rows: pd.DataFrame) -> int:
    """How many label ratios of UniMoCo were measured."""
    return len({p.label_ratio for p in rows["pretraining"] if p.method == "unimoco"})


def _ours(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
    """A curve with its band of one sample standard deviation, and a line for each baseline.

    Of UniMoCo the recipe with the most ratios is drawn; a point without a spread, one pre-training, is hollow.
    """
    drawn = by_ratio(rows)
    points = []
    for p in sorted(set(rows["pretraining"])):
        chosen = rows[rows["pretraining"] == p]
        cell = Cell.of(chosen["value"], chosen["trained"])
        if p in drawn.values():
            points.append((100 * p.label_ratio, cell.mean, cell.std if cell.n > 1 else np.nan))
        elif p.method in ("random", "cross_entropy"):
            style = ":" if p.method == "random" else "-."
            axes.axhline(cell.mean or 0.0, color=colour, linestyle=style, linewidth=1, label=p.title)
    if points:
        x, y, spread = np.array(sorted(points), dtype=float).T
        axes.plot(x, y, "-", color=colour)
        single = np.isnan(spread)
        if not single.all():
            kept = ~single
            axes.errorbar(x[kept], y[kept], spread[kept], fmt="o", color=colour, capsize=3, label="UniMoCo")
        if single.any():
            axes.plot(x[single], y[single], "o", color=colour, markerfacecolor="white", label="UniMoCo, one run")
        axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.2)


def courses(runs: list[Path]) -> Figure:
    """Loss beside chance level, and kNN on held-out images, by step, for every pre-training.

    Runs of one name but for the seed (NAME_s0, NAME_s1 ...) share a colour.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = {path: re.sub(r"_s\d+$", "", path.stem) for path in runs}
    kinds = sorted(set(names.values()))
    colours = dict(zip(kinds, plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(kinds))), strict=True))
    for path in runs:
        rows, colour = pd.read_json(path, lines=True), colours[names[path]]
        label = names[path] if path == next(run for run in runs if names[run] == names[path]) else None
        steps = rows.dropna(subset=["loss"])
        left.plot(steps["step"], steps["loss"], color=colour, linewidth=1.2, label=label)
        left.plot(steps["step"], steps["chance"], color=colour, linestyle="--", linewidth=0.8)
        if "knn" in rows:
            knn = rows.dropna(subset=["knn"])
            right.plot(knn["step"], 100 * knn["knn"], color=colour, marker="o", markersize=3)
    left.set(xlabel="step", ylabel="loss", title="loss (dashed: chance level)", ylim=(0, None))
    right.set(xlabel="step", ylabel="top-1, %", title="kNN on held-out images")
    figure.legend(loc="outside lower center", fontsize=8, ncols=6, frameon=False)
    return figure
