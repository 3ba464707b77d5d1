"""Pictures of a run: predictions beside the truth with a legend of colours, and the learning curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common.files import write_atomically

mpl.use("Agg")  # no window is opened
IGNORED = 255
DIM = 0.4
WIDTH = 11.5  # of a picture, inches
Sample = tuple[str, np.ndarray, np.ndarray]  # path of an image; truth and prediction, (H, W) class numbers


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """Lay the colours of the classes over an image in grey, and show dimly what has none.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) class numbers; 255 and classes whose colour is black have no colour.
        palette: (classes, 3) uint8 RGB.
        strength: share of the colour.
    """
    known = labels != IGNORED
    colours = palette[np.where(known, labels, 0)]
    grey = image.mean(axis=-1, keepdims=True)
    coloured = (known & colours.any(axis=-1))[..., None]
    return np.where(coloured, grey * (1 - strength) + colours * strength, grey * DIM).astype(np.uint8)


def draw(sample: Sample, palette: np.ndarray, axes: Sequence[Axes]) -> set[int]:
    """Draw image, truth, prediction and mistakes into four axes; return the classes that occur."""
    path, truth, found = sample
    image = cv2.resize(cv2.imread(path, cv2.IMREAD_COLOR_RGB), truth.shape[::-1])
    wrong = (truth != IGNORED) & (truth != found)
    mistakes = np.where(wrong[..., None], (230, 30, 30), image // 3 + 150).astype(np.uint8)
    share = wrong.sum() / max(1, (truth != IGNORED).sum())
    panels = {
        Path(path).name: image, "truth": overlay(image, truth, palette),
        "prediction": overlay(image, found, palette), f"wrong: {share:.1%}": mistakes,
    }  # fmt: skip
    for place, (title, panel) in zip(axes, panels.items(), strict=True):
        place.imshow(panel, interpolation="nearest" if panel.shape[0] < 256 else "antialiased")
        place.set_title(title, fontsize=9)
        place.axis("off")
    return (set(np.unique(truth)) | set(np.unique(found))) - {IGNORED}


def predictions(samples: Sequence[Sample], classes: Sequence[str], palette: Sequence, path: Path) -> None:
    """Write one picture: a row a sample (image, truth, prediction, mistakes), and a legend of the classes in it."""
    _save(compose(samples, classes, palette), path)


def compose(samples: Sequence[Sample], classes: Sequence[str], palette: Sequence) -> Figure:
    """Draw it: the legend stands below the rows, in as many columns as its names allow, and has its own height."""
    colours = np.asarray(palette, np.uint8)
    height, width = samples[0][1].shape
    figure = Figure(layout="constrained")
    rows = figure.subplots(len(samples), 4, squeeze=False)
    present: set[int] = set()
    for sample, row in zip(samples, rows, strict=True):
        present |= draw(sample, colours, row)
    names = [classes[i] for i in sorted(present)]
    columns = max(1, min(len(names), int(WIDTH / (0.6 + 0.08 * max(map(len, names), default=0)))))
    pictures = len(samples) * (0.25 + 2.7 * min(1.5, height / width))
    figure.set_size_inches(WIDTH, pictures + 0.2 + 0.21 * math.ceil(len(names) / columns))
    figure.legend(
        handles=[
            Patch(facecolor=colours[i] / 255, edgecolor="grey", label=name)
            for i, name in zip(sorted(present), names, strict=True)
        ],
        loc="outside lower center", ncols=columns, fontsize=9, frameon=False,
    )  # fmt: skip
    return figure


def learning_curve(metrics: Path, path: Path) -> None:
    """Draw loss and mIoU by iteration from a run's metrics.jsonl."""
    rows = pd.read_json(metrics, lines=True)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, label, scale in ((left, "loss", "training loss", 1), (right, "val/mIoU", "mIoU, %", 100)):
        if name in rows:
            known = rows.dropna(subset=[name])
            axes.plot(known["step"], scale * known[name], marker="o" if name != "loss" else None)
        axes.set(xlabel="iteration", title=label, xlim=(0, 1.05 * rows["step"].max()), ylim=(0, None))
        axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=110))
