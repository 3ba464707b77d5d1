"""The images of a pre-training: for training, and held out for kNN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from timm.models.resnet import ResNet

from common.distributed import on_first_rank
from common.features import extract_features
from common.folders import tell
from common.image_check import check_images
from common.images import UNLABELLED, CorruptImageError, ImageSet, load_images
from common.knn import accuracy, knn_predict
from common.labels import KeptLabels, choose_balanced, keep_labels
from common.loaders import TwoViews
from common.seen import sample_hashes
from pretrain.config import CROSS_ENTROPY, Config, MonitorConfig


class Knn:
    """Weighted kNN of held-out images (or a test set) against labelled training images.

    Args:
        bank: training images; kNN uses all their labels, kept or not, because it only measures.
        queries: held-out images.
        config: size of the bank, k and temperature.
        size: side of the evaluation view, in pixels.
        workers: loader processes; None: see `common.loaders.default_workers`.

    Raises:
        ValueError: too few labelled images, one class, or other classes among the held-out ones.
    """

    def __init__(
        self, bank: ImageSet, queries: ImageSet, config: MonitorConfig, size: int, workers: int | None
    ) -> None:
        labelled = np.flatnonzero(bank.labels != UNLABELLED)
        ratio = min(1.0, config.bank / max(len(labelled), 1))
        self.bank = bank.subset(choose_balanced(bank.labels, ratio, seed=0))
        self.queries = queries.subset(np.flatnonzero(queries.labels != UNLABELLED))
        if len(self.bank) < config.k:
            raise ValueError(f"monitor.k={config.k}: more neighbours than the {len(self.bank)} labelled images")
        if not len(self.queries):
            raise ValueError("none of the held-out images has a label: kNN has nothing to compare with")
        if len(bank.classes) == 1:
            raise ValueError(
                f"all images are of class {bank.classes[0]!r}: kNN would always be right; leave out --monitor.holdout "
                "and --monitor.images"
            )
        if bank.classes != queries.classes:
            raise ValueError(
                f"the held-out images have other classes than the training images: "
                f"{sorted(set(bank.classes) ^ set(queries.classes))[:5]}"
            )
        self.config, self.size, self.workers = config, size, workers

    def __call__(self, encoder: ResNet, device: torch.device) -> float:
        """Return the top-1 accuracy of an encoder's features, 0 ... 1."""
        bank, queries = (
            extract_features(encoder, images, self.size, device, workers=self.workers)
            for images in (self.bank, self.queries)
        )
        labels = torch.from_numpy(self.bank.labels).to(device)
        c = self.config
        ranked = knn_predict(queries, bank, labels, len(self.bank.classes), c.k, c.temperature)
        return accuracy(ranked, torch.from_numpy(self.queries.labels).to(device))


@dataclass(frozen=True)
class TrainingData:
    """What a pre-training reads.

    Args:
        images: N training images.
        kept: the labels that they keep.
        views: two views of an image and its label, N of them.
        knn: the measurement on held-out images; None where there are none, or none with a label.
        hashes: of the training images' files (common/seen.py); empty where they were not looked at.
    """

    images: ImageSet
    kept: KeptLabels
    views: TwoViews
    knn: Knn | None
    hashes: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


def load_data(config: Config) -> TrainingData:
    """Read the lists of images, hold some out for kNN and choose the labels to keep.

    Unless `skip_check` is set, every file is looked at. Broken images stay in training, where others replace them, and
    are neither held out nor in the bank of kNN.

    Raises:
        ValueError: a source, a list of labels or the number of held-out images does not fit.
        CorruptImageError: more images are broken than `data.max_corrupt` allows, or one of `monitor.images`.
    """
    images, held_out, m = load_images(config.data.sources, config.data.root, config.data.classes), None, config.monitor
    measured, hashes = (images, [""] * len(images)) if config.skip_check else _checked(images, config.data.max_corrupt)
    if m.images is not None:
        held_out = load_images([m.images], config.data.root, config.data.classes)
        if not config.skip_check:
            _checked(held_out, None)
    elif m.holdout:
        labelled = int((measured.labels != UNLABELLED).sum())
        if m.holdout >= labelled:
            raise ValueError(f"monitor.holdout={m.holdout}: must be below the {labelled} labelled images")
        chosen = choose_balanced(measured.labels, m.holdout / labelled, seed=0)
        held_out, rest = images.subset(chosen), np.setdiff1d(np.arange(len(images)), chosen)
        images, measured, hashes = images.subset(rest), measured.subset(rest), [hashes[i] for i in rest]
    kept = keep_labels(images, config.labels)
    seen = labelled_only(images, kept) if config.model.loss == CROSS_ENTROPY else (images, kept.labels)
    knn = None
    if held_out is not None and held_out.classes:
        knn = Knn(measured, held_out, m, config.views.size, config.data.workers)
    return TrainingData(images, kept, TwoViews(*seen, config.views, config.seed), knn, sample_hashes(hashes))


def _checked(images: ImageSet, max_corrupt: float | None) -> tuple[ImageSet, Sequence[str]]:
    """Look at every file; return the images, those that cannot be read without their label, and hashes of the files.

    `max_corrupt` is the fraction that training may replace; None: they are measured on, so each must be read.
    """
    title = "held-out images" if max_corrupt is None else "training images"
    checked = on_first_rank(lambda: check_images(images, title))
    wrong, hashes = checked.wrong, checked.hashes
    if not wrong:
        return images, hashes
    first = next(iter(wrong.values()))
    if max_corrupt is None:
        raise CorruptImageError(f"{first} ({len(wrong)} of {len(images)} {title} cannot be read)")
    text = f"{len(wrong)} of {len(images)} {title} cannot be read"
    if len(wrong) > math.ceil(max_corrupt * len(images)):
        raise CorruptImageError(f"{text}, more than data.max_corrupt={max_corrupt} allows; the first: {first}")
    tell(f"warning: {text} and will be replaced by others; the first: {first}")
    labels = images.labels.copy()
    labels[list(wrong)] = UNLABELLED
    return replace(images, labels=labels), hashes


def labelled_only(images: ImageSet, kept: KeptLabels) -> tuple[ImageSet, np.ndarray]:
    """Return the images that keep their label, repeated up to the number of all: the schedule stays the same.

    Returns:
        Images and their labels, (N,) int64; each repetition of an image gets views of its own.

    Raises:
        ValueError: no image keeps its label.
    """
    labelled = np.flatnonzero(kept.labels != UNLABELLED)
    if not len(labelled):
        raise ValueError("model.loss=cross_entropy: no image keeps its label; raise --labels.ratio")
    rows = np.resize(labelled, len(images))
    return images.subset(rows), kept.labels[rows]
