"""Plots: metrics by label ratio beside the paper's curve, and the training curves of each pre-training.

SVG without dates and with fixed identifiers: the same records give the same bytes.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.frame import by_ratio, headlines
from results.grid import Entry
from results.registry import METRICS, PAPER_TITLES, TASKS

STYLE: Any = {
    "svg.hashsalt": "unimoco", "svg.fonttype": "none", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3,
    "text.parse_math": False,  # a title may hold two dollar signs
}  # fmt: skip


def draw(rows: pd.DataFrame, papers: pd.DataFrame, curves: Path | None) -> dict[str, tuple[str, str]]:
    """Return the caption and SVG of each plot by its name; a task that has no curve has no plot.

    Args:
        rows: of `frame`.
        papers: of `published`.
        curves: folder of metrics.jsonl files of pre-trainings; None: draw none.
    """
    with mpl.rc_context(STYLE):
        figures = {"label_ratios": ("Every task by label ratio", every_task(rows))}
        for name, task in TASKS.items():
            figures[f"label_ratio_{name}"] = f"{task.title} by label ratio", label_ratio(rows, name, papers)
        if runs := sorted(curves.glob("*.jsonl")) if curves else []:
            figures["curves"] = "Pre-training: loss, and kNN on held-out images", training_curves(runs)
        return {name: (caption, svg(figure)) for name, (caption, figure) in figures.items() if figure}


def svg(figure: Figure) -> str:
    """Return a figure as SVG, and close it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    return file.getvalue()


def label_ratio(rows: pd.DataFrame, name: str, papers: pd.DataFrame) -> Figure | None:
    """Return the leading metric of a task by label ratio, with baselines as lines, beside the published curve.

    Args:
        rows: of `frame`.
        name: of the task.
        papers: of `published`.

    Returns:
        None where no config was measured with two label ratios.
    """
    task, metric = TASKS[name], TASKS[name].metrics[0]
    rows = rows[(rows["task"] == name) & (rows["metric"] == metric)]
    configs = [config for _, config in rows.groupby("config_hash") if len(by_ratio(config)) > 1]
    if not configs:
        return None
    paper = task.paper or name
    theirs = papers[(papers[["task", "method", "metric"]] == [paper, "unimoco", metric]).all(axis=1)]
    panels = 1 if theirs.empty else 2
    figure, axes = plt.subplots(1, panels, figsize=(4.75 * panels, 4.6), squeeze=False, layout="constrained")
    titles = f"{task.title}: ours", f"{PAPER_TITLES.get(paper, paper)}: published"
    for panel, title in zip(axes.flat, titles, strict=False):  # one panel where nothing is published
        panel.set(title=title, xlabel="labels used in pre-training, %", ylabel=f"{METRICS[metric]}, %")
    for index, config in enumerate(configs):
        title = textwrap.shorten(config["config"].iloc[0], 60)
        _curve(axes[0, 0], config, f"C{index}", f" ({title})" * (len(configs) > 1))
    axes[0, 0].legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    if panels == 2:
        axes[0, 1].plot(
            100 * theirs["label_ratio"], theirs["value"], "s--", color="tab:gray", label="UniMoCo, ResNet-50"
        )
        axes[0, 1].legend(fontsize=8)
    return figure


def every_task(rows: pd.DataFrame) -> Figure | None:
    """Return the leading metric of each task by label ratio, one panel each; None where no task has two ratios.

    Args:
        rows: of `frame`.
    """
    rows = headlines(rows)
    panels = {name: one for name in TASKS if len(by_ratio(one := rows[rows["task"] == name])) > 1}
    if not panels:
        return None
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(down, across, figsize=(3.6 * across, 2.9 * down), squeeze=False, layout="constrained")
    for panel, (name, of_task) in zip(axes.flat, panels.items(), strict=False):  # the last row may have room left
        _curve(panel, of_task, "C0")
        metric = TASKS[name].metrics[0]
        panel.set(title=TASKS[name].title, ylabel=f"{METRICS[metric]}, %", xlabel="labels used, %")
    for unused in axes.flat[len(panels) :]:
        unused.axis("off")
    handles = {
        label: handle for panel in axes.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=9, ncols=4, frameon=False)
    return figure


def _curve(axes: Axes, rows: pd.DataFrame, color: str, suffix: str = "") -> None:
    """Draw one metric by label ratio, with a band of one standard deviation, and a line for each baseline.

    UniMoCo's recipe with the most ratios is drawn. A point of a single pre-training has no spread and is hollow.
    """
    entries = {key: Entry.of(group) for key, group in rows.groupby("backbone_id")}
    for _, backbone in rows.drop_duplicates("backbone_id").iterrows():
        if backbone["method"] in ("random", "cross_entropy"):
            style, label = ":" if backbone["method"] == "random" else "-.", backbone["title"] + suffix
            axes.axhline(entries[backbone["backbone_id"]].mean, color=color, linestyle=style, linewidth=1, label=label)
    points = {100 * ratio: entries[key] for ratio, key in by_ratio(rows).items()}
    x, y = np.array([*points]), np.array([entry.mean for entry in points.values()])
    spread = np.array([entry.std for entry in points.values()], dtype=float)  # NaN for a single pre-training
    axes.plot(x, y, "-", color=color)
    single = np.isnan(spread)
    for chosen, label, face in ((~single, "UniMoCo", color), (single, "UniMoCo, one pre-training", "white")):
        if chosen.any():
            axes.errorbar(
                x[chosen], y[chosen], spread[chosen], fmt="o", color=color, capsize=3, markerfacecolor=face,
                label=label + suffix,
            )  # fmt: skip
    axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.2)


def training_curves(runs: list[Path]) -> Figure:
    """Return loss with its chance level, and kNN on held-out images, by step, for every pre-training.

    Runs whose names differ only in the seed (NAME_s0, NAME_s1 ...) share a color.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in runs:
        by_name[re.sub(r"_s\d+$", "", path.stem)].append(path)
    colors = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(by_name)))
    for (name, paths), color in zip(sorted(by_name.items()), colors, strict=True):
        for path in paths:
            rows = pd.read_json(path, lines=True)
            steps = rows.dropna(subset=["loss"])
            label = name if path is paths[0] else None
            left.plot(steps["step"], steps["loss"], color=color, linewidth=1.2, label=label)
            left.plot(steps["step"], steps["chance"], color=color, linestyle="--", linewidth=0.8)
            if "knn" in rows:
                knn = rows.dropna(subset=["knn"])
                right.plot(knn["step"], 100 * knn["knn"], color=color, marker="o", markersize=3)
    left.set(xlabel="step", ylabel="loss", title="loss (dashed: chance level)", ylim=(0, None))
    right.set(xlabel="step", ylabel="top-1, %", title="kNN on held-out images")
    figure.legend(loc="outside lower center", fontsize=8, ncols=6, frameon=False)
    return figure
