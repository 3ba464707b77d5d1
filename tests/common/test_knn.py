"""The weighted kNN classifier."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

import common.knn
from common.knn import accuracy, knn_predict
from tests.common.clusters import BANK, BANK_LABELS, CLASSES, QUERIES, T, ranks_by_loops


def test_the_example_in_the_docstring_is_right() -> None:
    assert doctest.testmod(common.knn) == (0, 4)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("k", [1, 7, 149])
def test_equals_a_brute_force_sum_of_scores(k: int, temperature: float) -> None:
    ranked = knn_predict(QUERIES, BANK, BANK_LABELS, CLASSES, k, temperature)
    np.testing.assert_array_equal(ranked.numpy(), ranks_by_loops(k, temperature, leave_one_out=False))


@pytest.mark.parametrize("k", [1, 20, 150])
def test_equals_scikit_learn(k: int) -> None:
    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / T)

    theirs = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    theirs.fit(BANK.double().numpy(), BANK_LABELS.numpy())
    ours = knn_predict(QUERIES, BANK, BANK_LABELS, CLASSES, k, T)[:, 0]
    np.testing.assert_array_equal(ours.numpy(), theirs.predict(QUERIES.double().numpy()))


def test_the_weights_matter() -> None:
    """Three far neighbours outweigh a near one at a high temperature, not at a low one."""
    angles = torch.tensor([0.05, 0.6, 0.6, 0.6])
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels, query = torch.tensor([0, 1, 1, 1]), torch.tensor([[1.0, 0.0]])
    assert knn_predict(query, bank, labels, 2, 4, temperature=0.07)[0, 0] == 0
    assert knn_predict(query, bank, labels, 2, 4, temperature=1.0)[0, 0] == 1


@pytest.mark.parametrize("queries", [1, 7, 1000])
def test_the_size_of_a_chunk_does_not_change_the_answer(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = knn_predict(QUERIES, BANK, BANK_LABELS, CLASSES, 5, T)
    monkeypatch.setattr(common.knn, "SIMILARITIES", {"cpu": queries * len(BANK)})
    assert torch.equal(knn_predict(QUERIES, BANK, BANK_LABELS, CLASSES, 5, T), at_once)


@pytest.mark.parametrize("temperature", [0.001, 0.005])
def test_a_small_temperature_leaves_the_nearest_to_decide(temperature: float) -> None:
    """exp((s - 1) / T) would be 0 for every neighbour, and class 0 the answer."""
    far = F.normalize(QUERIES + 3 * torch.randn(60, 12, generator=torch.Generator().manual_seed(3)), dim=1)
    one = knn_predict(far, BANK, BANK_LABELS, CLASSES, 1, T)[:, 0]
    many = knn_predict(far, BANK, BANK_LABELS, CLASSES, 10, temperature)[:, 0]
    assert (one == many).float().mean() > 0.9  # not 1: near ties may still flip
    assert len(many.unique()) == CLASSES


@pytest.mark.parametrize("k", [151, 0])
def test_k_out_of_range_is_an_error(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k={k}: must lie between 1 and the 150 images of the bank"):
        knn_predict(QUERIES, BANK, BANK_LABELS, CLASSES, k, T)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_an_error(temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"temperature={temperature}"):
        knn_predict(QUERIES, BANK, BANK_LABELS, CLASSES, 5, temperature)


def test_accuracy_counts_hits_among_the_first() -> None:
    ranked = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]])
    labels = torch.tensor([0, 1, 2, 2])
    assert [accuracy(ranked, labels, top) for top in (1, 2, 3)] == [0.25, 0.75, 1.0]
