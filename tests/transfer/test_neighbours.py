"""The kNN search: a bank read in blocks, split over ranks, in half precision; leaving one out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from common.distributed import rank
from common.knn import accuracy, knn_predict, rank_classes
from pretrain.fake_cuda import CUDA, fake_cuda
from tests.common.clusters import BANK, BANK_LABELS, CLASSES, QUERIES, T, ranks_by_loops
from tests.common.gloo import run_two
from tests.pretrain.host_waits import HostWaits
from transfer.classification import neighbours
from transfer.classification.neighbours import gather_nearest, nearest, top_classes

SELF = torch.arange(len(BANK))


@pytest.mark.parametrize("block", [1, 4, 32, 149, 1000])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_the_bank_may_be_read_in_blocks_of_any_size(
    block: int, leave_one_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 13)
    monkeypatch.setattr(neighbours, "BLOCK", block)
    queries = BANK if leave_one_out else QUERIES
    similarity = queries @ BANK.T
    if leave_one_out:
        similarity.fill_diagonal_(-torch.inf)
    for k in (1, 7, 149):
        top, index = similarity.topk(k)
        found = nearest(queries, BANK, BANK_LABELS, k, SELF if leave_one_out else None)
        torch.testing.assert_close(found.similarity, top)
        assert torch.equal(found.labels, BANK_LABELS[index])


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_a_raw_bank_in_half_precision_is_normalised_as_it_is_read(
    dtype: torch.dtype, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 32)
    raw = (BANK * torch.linspace(0.1, 9, 150)[:, None]).to(dtype)
    found = nearest(QUERIES, raw, BANK_LABELS, 20)
    assert found.similarity.dtype == torch.float32
    assert float((found.similarity - (QUERIES @ BANK.T).topk(20).values).abs().max()) < error
    ours = rank_classes(found.similarity, found.labels, CLASSES, T)[:, 0]
    assert (ours == knn_predict(QUERIES, BANK, BANK_LABELS, CLASSES, 20, T)[:, 0]).double().mean() > 0.9


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("k", [1, 7, 149])
def test_leave_one_out_equals_a_brute_force_sum_of_scores(k: int, temperature: float) -> None:
    ranked = top_classes(nearest(BANK, BANK, BANK_LABELS, k, SELF), CLASSES, k, temperature)
    np.testing.assert_array_equal(ranked.numpy(), ranks_by_loops(k, temperature, leave_one_out=True))


def test_left_out_an_image_is_not_its_own_neighbour() -> None:
    own, other = (nearest(BANK, BANK, BANK_LABELS, 1, excluded).labels for excluded in (None, SELF))
    assert accuracy(own, BANK_LABELS) == 1.0
    assert accuracy(other, BANK_LABELS) < 0.9


@pytest.mark.parametrize("block", [7, 1000])
def test_the_host_does_not_wait_for_a_gpu(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 13)
    monkeypatch.setattr(neighbours, "BLOCK", block)
    with fake_cuda(), HostWaits() as waits:
        queries, labels = torch.zeros(150, 8, device=CUDA), torch.zeros(150, dtype=torch.int64, device=CUDA)
        assert nearest(queries, queries, labels, 5, labels).labels.shape == (150, 5)
    assert not waits.found


def test_several_k_of_one_search_equal_a_search_each(monkeypatch: pytest.MonkeyPatch) -> None:
    found = nearest(QUERIES, BANK, BANK_LABELS, 20)
    monkeypatch.setattr(neighbours, "RANKED", 7)
    for k in (20, 1, 5):
        ranked = knn_predict(QUERIES, BANK, BANK_LABELS, CLASSES, k, T)
        assert torch.equal(top_classes(found, CLASSES, k, T), ranked)
    monkeypatch.setattr(neighbours, "TOP", 2)
    assert torch.equal(top_classes(found, CLASSES, 5, T), knn_predict(QUERIES, BANK, BANK_LABELS, CLASSES, 5, T)[:, :2])


def part_of_the_bank(bounds: list[int], k: int) -> dict[str, Tensor]:
    """Return what all ranks find together, each in its part of the bank."""
    mine = slice(bounds[rank()], bounds[rank() + 1])
    found = gather_nearest(nearest(QUERIES, BANK[mine], BANK_LABELS[mine], k), k)
    return {"similarity": found.similarity, "labels": found.labels}


@pytest.mark.ddp
def test_two_processes_with_a_part_of_the_bank_each_find_what_one_finds() -> None:
    """Unequal parts, one of them smaller than k."""
    alone = nearest(QUERIES, BANK, BANK_LABELS, 20)
    for found in run_two(part_of_the_bank, [0, 138, 150], 20):
        torch.testing.assert_close(found["similarity"], alone.similarity)
        assert torch.equal(found["labels"], alone.labels)
