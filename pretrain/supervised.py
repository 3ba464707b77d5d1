"""The supervised baseline: cross-entropy on the images that keep their label, all else as in UniMoCo.

Encoder, query views, batch-norm groups, optimiser and schedule are those of a contrastive run of the same
configuration; the projection head gives way to a linear classifier.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.images import UNLABELLED, ImageSet
from common.labels import KeptLabels
from pretrain.batch_norm import split_batch_norm
from pretrain.unimoco import ModelConfig, build_encoder

CROSS_ENTROPY = "cross_entropy"


class Classifier(nn.Module):
    """An encoder with a linear classifier; its state is named encoder_q.*, as a UniMoCo checkpoint's.

    Args:
        config: its arch and stem.
        classes: number of classes.
    """

    mask_same_image = False  # there is no queue

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config.arch, config.stem)
        encoder.fc = nn.Linear(encoder.num_features, classes)
        self.encoder_q = split_batch_norm(encoder)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in fp32 of logits (n, classes) and labels (n,), none of them -1."""
        return F.cross_entropy(logits.float(), labels)

    @torch.no_grad()
    def statistics(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What the loss means; scalars on the device. `chance` is the loss when all classes are equally likely."""
        return {
            "chance": torch.full((), math.log(logits.shape[1]), device=logits.device),
            "batch_top1": (logits.argmax(1) == labels).double().mean(),
        }


def labelled_only(images: ImageSet, kept: KeptLabels) -> tuple[ImageSet, np.ndarray]:
    """The images that keep their label, repeated until they are as many as all: the schedule stays the same.

    Returns:
        Images and their labels, (N,) int64; a repeated image gets other views in each place.

    Raises:
        ValueError: no image keeps its label.
    """
    labelled = np.flatnonzero(kept.labels != UNLABELLED)
    if not len(labelled):
        raise ValueError(
            "model.loss=cross_entropy: no image keeps its label; raise --labels.ratio or name --labels.list"
        )
    places = np.resize(labelled, len(images))
    return images.subset(places), kept.labels[places]
