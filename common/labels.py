"""Which images keep their label: a share of every class, or a list.

The same lists serve the semi-supervised benchmark. SimCLR's and UniMoCo's published lists can be given as they
are: one file name a line.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.images import UNLABELLED, ImageSet, text_lines


@dataclass(frozen=True)
class LabelConfig:
    """Which images keep their label in pre-training.

    Args:
        ratio: share of the labelled images that keep their label, 0 to 1, the same in every class.
        seed: of the choice. With one seed, the images of a smaller ratio are among those of a larger one.
        list: file that names the images that keep their label, in place of `ratio`: one a line, by file name or by
            path relative to the source. An empty file is 0 %.
    """

    ratio: float = 1.0
    seed: int = 0
    list: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"labels.ratio={self.ratio}: a share of the labelled images, between 0 and 1")


@dataclass(frozen=True)
class KeptLabels:
    """The outcome of `keep_labels`.

    Args:
        labels: (N,) int64, -1 where the image has no label or loses it.
        names: of the images that keep their label, sorted.
    """

    labels: np.ndarray
    names: list[str]

    @property
    def text(self) -> str:
        """The names, one a line: a list file."""
        return "".join(f"{name}\n" for name in self.names)

    @property
    def sha256(self) -> str:
        """Hash of `text`."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def keep_labels(images: ImageSet, config: LabelConfig) -> KeptLabels:
    """Drops the labels that the configuration does not keep.

    Raises:
        ValueError: a list that does not exist, a line of it that matches no image, several images or an image
            without a label, or that stands there twice; ratio and list both given.
    """
    if config.list is not None:
        if config.ratio != 1.0:
            raise ValueError(f"labels.ratio={config.ratio} and labels.list={config.list}: give one of the two")
        kept = match_list(images, config.list)
    else:
        kept = choose_balanced(images.labels, config.ratio, config.seed)
    labels = np.full(len(images), UNLABELLED, dtype=np.int64)
    labels[kept] = images.labels[kept]
    return KeptLabels(labels, sorted(images.names[i] for i in kept))


def choose_balanced(labels: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Numbers of the images that keep their label: round(ratio * labelled) of them, class-balanced.

    Of m chosen images each class gives m * its share of the labelled images, rounded down or up, and the images of
    a smaller ratio are among those of a larger one.

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
    """Class of each place in an order whose every beginning is balanced.

    The first m places hold class c m * sizes[c] / total times, rounded down or up, for all m. To that end a class
    may take its j-th place (j = 0, 1, ...) after j * total / sizes[c] places and must have it before
    (j + 1) * total / sizes[c]; the earliest deadline goes first (Steiner & Yeomans 1993, level schedules).

    Args:
        sizes: (classes,) number of images of each class.
    """
    total = int(sizes.sum())
    if len(set(sizes.tolist())) <= 1:  # equal classes take turns
        return np.arange(total) % max(len(sizes), 1)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    number = np.concatenate([np.arange(size) for size in sizes])
    start = number * total // sizes[owner]
    deadline = -(-(number + 1) * total // sizes[owner])
    arrivals = np.argsort(start, kind="stable")
    arriving = iter(zip(start[arrivals].tolist(), deadline[arrivals].tolist(), owner[arrivals].tolist(), strict=True))
    waiting: list[tuple[int, int]] = []
    order, following = [], next(arriving, None)
    for place in range(total):
        while following is not None and following[0] <= place:
            heapq.heappush(waiting, following[1:])
            following = next(arriving, None)
        order.append(heapq.heappop(waiting)[1])
    return np.array(order, dtype=np.int64)


def match_list(images: ImageSet, path: str) -> np.ndarray:
    """Numbers of the images that a list file names.

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
        name = line.strip()
        if not name:
            continue
        where, matches = f"{path}:{number}", by_name.get(name, [])
        if not matches:
            raise ValueError(f"{where}: {name!r} is none of the {len(images)} images")
        if len(matches) > 1:
            examples = ", ".join(images.names[i] for i in matches[:2])
            raise ValueError(f"{where}: {name!r} could be {examples}; name it by its relative path")
        if images.labels[matches[0]] == UNLABELLED:
            raise ValueError(f"{where}: {name!r} has no label that it could keep")
        if matches[0] in seen:
            raise ValueError(f"{where}: {name!r} is already named in line {seen[matches[0]]}")
        seen[matches[0]] = number
    return np.array(sorted(seen), dtype=np.int64)
