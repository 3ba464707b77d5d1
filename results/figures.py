"""Pictures from records: `python -m results.figures` draws docs/curves.png from results/curves/*.jsonl.

A curve file is the metrics.jsonl of a run, under the run's name.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

ROOT = Path(__file__).parents[1]
NAMES = {"desk_r0_s0": "0 % of the labels", "desk_r1_s0": "100 % of the labels"}


def curves(path: Path) -> None:
    """Loss beside chance level, and kNN on held-out images, by step, for a run without and one with labels."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for (run, title), colour in zip(NAMES.items(), ("tab:orange", "tab:blue"), strict=True):
        rows = pd.read_json(ROOT / "results" / "curves" / f"{run}.jsonl", lines=True)
        steps = rows.dropna(subset=["loss"])
        left.plot(steps["step"], steps["loss"], color=colour, label=title)
        left.plot(steps["step"], steps["chance"], color=colour, linestyle="--", linewidth=1)
        knn = rows.dropna(subset=["knn"])
        right.plot(knn["step"], 100 * knn["knn"], color=colour, marker="o", label=title)
    left.set(xlabel="step", ylabel="UniCon loss", title="loss (dashed: chance level)", ylim=(0, None))
    right.set(xlabel="step", ylabel="top-1, %", title="kNN on held-out images")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    mpl.use("Agg")
    curves(ROOT / "docs" / "curves.png")
