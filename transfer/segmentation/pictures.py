"""Pictures of a segmentor's predictions beside the truth, with a legend of the classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common.files import write_atomically

mpl.use("Agg")  # no window is opened
IGNORED = 255  # label of pixels that count nowhere
DIM = 0.4
WIDTH = 11.5  # of a picture, inches
Sample = tuple[str, np.ndarray, np.ndarray]  # path of an image; truth and prediction, (H, W) class indices


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """Overlay class colours on an (H, W, 3) uint8 RGB image in grayscale; pixels without a colour are dimmed.

    Labels (H, W) of 255, and classes whose colour in the palette (classes, 3) is black, have no colour.
    """
    known = labels != IGNORED
    colours = palette[np.where(known, labels, 0)]
    gray = image.mean(axis=-1, keepdims=True)
    coloured = (known & colours.any(axis=-1))[..., None]
    return np.where(coloured, gray * (1 - strength) + colours * strength, gray * DIM).astype(np.uint8)


def draw(sample: Sample, palette: np.ndarray, axes: Sequence[Axes]) -> set[int]:
    """Draw image, truth, prediction and errors into four axes; return the classes that occur."""
    path, truth, found = sample
    image = cv2.resize(cv2.imread(path, cv2.IMREAD_COLOR_RGB), truth.shape[::-1])
    wrong = (truth != IGNORED) & (truth != found)
    errors = np.where(wrong[..., None], (230, 30, 30), image // 3 + 150).astype(np.uint8)
    fraction = wrong.sum() / max(1, (truth != IGNORED).sum())
    panels = {
        Path(path).name: image, "truth": overlay(image, truth, palette),
        "prediction": overlay(image, found, palette), f"wrong: {fraction:.1%}": errors,
    }  # fmt: skip
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        ax.imshow(panel, interpolation="nearest" if panel.shape[0] < 256 else "antialiased")
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    return (set(np.unique(truth)) | set(np.unique(found))) - {IGNORED}


def predictions(samples: Sequence[Sample], classes: Sequence[str], palette: Sequence, path: Path) -> None:
    """Write one picture: a row per sample (image, truth, prediction, errors), and a legend of its classes."""
    figure = compose(samples, classes, palette)
    write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=110))


def compose(samples: Sequence[Sample], classes: Sequence[str], palette: Sequence) -> Figure:
    """Draw the rows, and below them the legend in as many columns as its names allow."""
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
