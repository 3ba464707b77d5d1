"""kNN on held-out images: who is in the bank, what it measures, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch

from common.images import ImageSet
from pretrain.config import MonitorConfig
from pretrain.data import Knn

CPU = torch.device("cpu")
CONFIG = MonitorConfig(k=3)
MakeImages = Callable[..., ImageSet]


def test_knn_takes_the_labelled_images_and_no_more_than_the_bank(make_images: MakeImages) -> None:
    bank, queries = make_images([0, 1, 2, -1] * 20), make_images([0, -1, 2])
    knn = Knn(bank, queries, MonitorConfig(k=3, bank=30), size=32, workers=0)
    assert np.bincount(knn.bank.labels).tolist() == [10, 10, 10]
    assert knn.queries.labels.tolist() == [0, 2]
    assert len(Knn(bank, queries, MonitorConfig(k=3, bank=1000), size=32, workers=0).bank) == 60


def test_knn_is_the_share_of_queries_whose_neighbours_have_their_class(make_images: MakeImages) -> None:
    """With k = 1 and the queries in the bank each finds itself: all right, or as many as the labels agree."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = timm.create_model("resnet18", num_classes=0)
    bank = make_images([0, 1, 2, 0, 1, 2, 0, 1])
    relabelled = ImageSet(bank.names, np.array([0, 1, 2, 0, 2, 1, 1, 0]), bank.classes, bank.read)
    values = [Knn(bank, q, MonitorConfig(k=1), size=32, workers=0)(encoder, CPU) for q in (bank, relabelled)]
    assert values == [1.0, 0.5]


@pytest.mark.parametrize(
    ("bank", "queries", "complaint"),
    [
        ({"labels": [0, 1, -1]}, {"labels": [0]}, r"monitor\.k=3: more neighbours than the 2 labelled images"),
        ({"labels": [-1] * 9}, {"labels": [0]}, r"monitor\.k=3: more neighbours than the 0 labelled images"),
        ({"labels": [0, 1, 0]}, {"labels": [-1, -1]}, "none of the held-out images has a label"),
        ({"labels": [0, 1, 0]}, {"labels": [0], "classes": 4}, r"other classes than the training images: \['class3'\]"),
    ],
)
def test_what_knn_cannot_measure_is_an_error(
    make_images: MakeImages, bank: dict[str, Any], queries: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Knn(make_images(**bank), make_images(**queries), CONFIG, size=32, workers=0)
