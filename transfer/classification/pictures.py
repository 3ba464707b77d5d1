"""Plots, written to a PNG file `path`: confusion matrix, t-SNE, nearest neighbours.

Shapes: N test images, B images of the bank, D feature width.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
from torch import Tensor
from torch.nn import functional as F

from common.files import write_atomically
from common.images import ImageSet
from common.labels import choose_balanced

SHOWN = 30  # classes in a confusion matrix; of more, those that are misclassified most often
MAX_POINTS, MIN_POINTS = 1500, 5  # features in a t-SNE plot
MIN_STD = 1e-6  # of L2-normalised features; below it t-SNE crashes
QUERIES, NEIGHBOURS = 8, 8


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda part: figure.savefig(part, dpi=110, format="png"))


def confusion(path: Path, labels: np.ndarray, predicted: np.ndarray, classes: list[str], title: str) -> None:
    """Plot the confusion matrix of labels (N,) and predictions (N,): rows are true classes, in % of the row.

    Of more than 30 classes those that are misclassified most often are shown.
    """
    chosen = np.unique(labels)
    if len(chosen) > SHOWN:
        wrong = [(predicted[labels == c] != c).mean() for c in chosen]
        chosen = np.sort(chosen[np.argsort(wrong)[-SHOWN:]])
        title += f": the {SHOWN} classes most often missed"
    counts = confusion_matrix(labels, predicted, labels=np.arange(len(classes)))
    percent = 100 * counts[chosen] / counts[chosen].sum(1, keepdims=True)
    side = 2.2 + 0.5 * len(chosen)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(percent[:, chosen], display_labels=[classes[c] for c in chosen])
    display.plot(ax=axes, cmap="Blues", values_format=".0f", xticks_rotation=45, colorbar=False)
    for text in display.text_.ravel():
        text.set_visible(float(text.get_text()) >= 1)  # zeros would only distract
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right")
    axes.set(title=f"{title}: predictions in % of each class", xlabel="predicted", ylabel="true")
    _save(figure, path)


def feature_map(path: Path, features: Tensor, labels: np.ndarray, classes: list[str], title: str) -> None:
    """Plot a t-SNE of up to 1,500 of the features (N, D), class-balanced, L2-normalised, after a PCA to 50 dimensions.

    With fewer than five features, or features that are all alike, print a line instead.
    """
    rows = choose_balanced(labels, min(1.0, MAX_POINTS / len(labels)), seed=0)
    points = F.normalize(features[torch.from_numpy(rows)].float(), dim=1).numpy()
    if len(rows) < MIN_POINTS or points.std(0).max() < MIN_STD:
        reason = "they are all alike" if len(rows) >= MIN_POINTS else f"there are {len(rows)}, {MIN_POINTS} are needed"
        print(f"no t-SNE of the test features: {reason}")
        return
    points = PCA(min(50, *points.shape), random_state=0).fit_transform(points)
    perplexity = min(30, (len(rows) - 1) / 3)
    embedded = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(points)
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    colours = mpl.colormaps["tab10" if len(classes) <= 10 else "gist_ncar"].resampled(max(10, len(classes)))
    for c, name in enumerate(classes):
        x, y = embedded[labels[rows] == c].T
        axes.scatter(x, y, s=9, color=colours(c), label=name, linewidths=0)
    if len(classes) <= SHOWN:
        axes.legend(markerscale=2.5, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set(title=f"{title}: t-SNE of {len(rows)} test features", xticks=[], yticks=[])
    _save(figure, path)


def neighbours(path: Path, train: ImageSet, test: ImageSet, train_features: Tensor, test_features: Tensor) -> None:
    """Show a few test images, each with its nearest training images by cosine; another class is framed in red.

    Features are (B, D) of the training images and (N, D) of the test images.
    """
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.unique(test.labels))[:QUERIES]
    rows = [int(rng.choice(np.flatnonzero(test.labels == c))) for c in classes]
    queries = F.normalize(test_features[rows].float(), dim=1)
    similarity = torch.cat(
        [queries @ F.normalize(part.float(), dim=1).T for part in train_features.split(16384)], dim=1
    )
    if train is test:
        similarity[torch.arange(len(rows)), rows] = -torch.inf
    top, nearest = similarity.topk(min(NEIGHBOURS, len(train) - (train is test)), dim=1)
    figure = Figure(figsize=(1.15 * (top.shape[1] + 1), 1.3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), top.shape[1] + 1, squeeze=False)
    for line, row in enumerate(rows):
        _image(grid[line][0], test, row, test.classes[test.labels[row]], "black")
        for column in range(top.shape[1]):
            index = int(nearest[line, column])
            colour = "tab:green" if train.labels[index] == test.labels[row] else "tab:red"
            _image(grid[line][column + 1], train, index, f"{top[line, column]:.2f}", colour)
    figure.suptitle(
        "test image, and the training images nearest to it with their cosine (red: another class)", fontsize=9
    )
    _save(figure, path)


def _image(axes: mpl.axes.Axes, images: ImageSet, index: int, text: str, colour: str) -> None:
    axes.imshow(images.read(index))
    axes.set(xticks=[], yticks=[])
    axes.set_title(text, fontsize=7, color=colour, pad=2)
    for side in axes.spines.values():
        side.set(color=colour, linewidth=1.5)
