"""Which images keep their label: a fraction of every class, or a list.

The semi-supervised benchmark uses the same lists. The published lists of SimCLR and UniMoCo work as they are: one file
name per line.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import text_lines
from common.folders import escaped
from common.images import UNLABELLED, ImageSet


@dataclass(frozen=True)
class LabelConfig:
    """Which images keep their label in pre-training.

    Args:
        ratio: fraction of the labelled images that keep their label, 0 to 1, the same in every class.
        seed: of the choice. With one seed, a smaller ratio keeps a subset of what a larger one keeps.
        list: file that names the images that keep their label, in place of `ratio`: one per line, by file name or by
            path relative to the source. An empty file keeps none.
    """

    ratio: float = 1.0
    seed: int = 0
    list: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"labels.ratio={self.ratio}: must be a fraction of the labelled images, between 0 and 1")


@dataclass(frozen=True)
class KeptLabels:
    """The result of `keep_labels`.

    Args:
        labels: (N,) int64, -1 where the image has no label or loses it.
        names: of the images that keep their label, sorted.
    """

    labels: np.ndarray
    names: list[str]

    @property
    def text(self) -> str:
        """The names, one per line: a list file."""
        return "".join(f"{name}\n" for name in self.names)

    @property
    def sha256(self) -> str:
        """The hash of `text`."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def keep_labels(images: ImageSet, config: LabelConfig) -> KeptLabels:
    """Drop the labels that the configuration does not keep.

    Raises:
        ValueError: ratio and list are both given; the list is missing, or a line of it matches no image, several
            images, an unlabelled image, or the image of another line.
    """
    if config.list is not None:
        if config.ratio != 1.0:
            raise ValueError(f"labels.ratio={config.ratio} and labels.list={config.list}: give only one of them")
        kept = match_list(images, config.list)
    else:
        kept = choose_balanced(images.labels, config.ratio, config.seed)
    labels = np.full(len(images), UNLABELLED, dtype=np.int64)
    labels[kept] = images.labels[kept]
    return KeptLabels(labels, sorted(images.names[i] for i in kept))


def choose_balanced(labels: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Return the indices of the images that keep their label: round(ratio * labelled) of them, class-balanced.

    Each class gives its fraction of the labelled images times the number to choose, rounded down or up. A smaller
    ratio chooses a subset of what a larger one chooses.

    Args:
        labels: (N,) int64, -1 = unlabelled.
        ratio: 0 to 1.
        seed: of the choice within the classes.
    """
    classes, sizes = np.unique(labels[labels != UNLABELLED], return_counts=True)
    counts = np.bincount(_quota_order(sizes)[: round(ratio * int(sizes.sum()))], minlength=len(classes))
    chosen = [
        np.random.default_rng((seed, int(c))).permutation(np.flatnonzero(labels == c))[:count]
        for c, count in zip(classes, counts, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def _quota_order(sizes: np.ndarray) -> np.ndarray:
    """Return the class of each element of a sequence whose every prefix is balanced, for class sizes (classes,).

    The first m elements hold class c m * sizes[c] / total times, rounded down or up, for all m. To that end the j-th
    element of a class (j = 0, 1, ...) is scheduled after position j * total / sizes[c] and before
    (j + 1) * total / sizes[c], the earliest deadline first (Steiner & Yeomans 1993, level schedules).
    """
    total, owner = int(sizes.sum()), np.repeat(np.arange(len(sizes)), sizes)
    j = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    start, deadline = j * total // sizes[owner], -(-(j + 1) * total // sizes[owner])
    arriving = sorted(zip(start.tolist(), deadline.tolist(), owner.tolist(), strict=True), reverse=True)
    waiting: list[tuple[int, int]] = []
    order = []
    for position in range(total):
        while arriving and arriving[-1][0] <= position:
            heapq.heappush(waiting, arriving.pop()[1:])
        order.append(heapq.heappop(waiting)[1])
    return np.array(order, dtype=np.int64)


def match_list(images: ImageSet, path: str) -> np.ndarray:
    """Return the indices of the images that a list file names.

    Raises:
        ValueError: see `keep_labels`.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"labels.list={path}: no such file (an empty file, or --labels.ratio 0, keeps no label)")
    by_name: dict[str, list[int]] = {}
    for i, name in enumerate(images.names):
        for key in {name, name.rsplit("/", 1)[-1]}:
            by_name.setdefault(key, []).append(i)
    seen: dict[int, int] = {}
    for number, line in enumerate(text_lines(file), 1):
        if not line.strip():
            continue
        name = escaped(line)
        if name not in by_name:
            name = escaped(line.strip())
        where, matches = f"{path}:{number}", by_name.get(name, [])
        if not matches:
            raise ValueError(f"{where}: {name!r} is not among the {len(images)} images")
        if len(matches) > 1:
            examples = ", ".join(images.names[i] for i in matches[:2])
            raise ValueError(f"{where}: {name!r} is ambiguous ({examples}); give its relative path")
        if images.labels[matches[0]] == UNLABELLED:
            raise ValueError(f"{where}: {name!r} has no label to keep")
        if matches[0] in seen:
            raise ValueError(f"{where}: {name!r} repeats line {seen[matches[0]]}")
        seen[matches[0]] = number
    return np.array(sorted(seen), dtype=np.int64)
