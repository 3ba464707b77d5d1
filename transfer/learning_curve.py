"""The learning curve of a run that trains in a framework."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from common.files import write_atomically


def save_learning_curve(metrics: Path, path: Path, score: str, unit: float) -> None:
    """Draw losses (columns with "loss" in their name), learning rate and a score of metrics.jsonl to a PNG file.

    The score is a column such as "val/mIoU", where 1 % is `unit`.
    """
    rows = pd.read_json(metrics, lines=True).set_index("step")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in filter(lambda name: "loss" in name, map(str, rows)):
        values = pd.to_numeric(rows[name], errors="coerce").dropna()
        left.plot(values, linewidth=2 if name in ("loss", "total_loss") else 1, label=name)
    left.set(title="training loss", ylim=(0, None))
    if left.lines:
        left.legend(fontsize=8, ncols=2)
    if "lr" in rows:
        rate = left.twinx()
        rate.plot(rows["lr"].dropna(), color="grey", linestyle=":", linewidth=1)
        rate.set(ylabel="learning rate (dotted)", ylim=(0, None))
    if score in rows:
        right.plot(pd.to_numeric(rows[score], errors="coerce").dropna() / unit, marker="o")
    right.set(title=f"{score}, %", ylim=(0, None))
    for axes in (left, right):
        axes.set(xlabel="iteration", xlim=(0, 1.05 * rows.index.max()))
        axes.grid(alpha=0.3)
    write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=110))
