"""The weighted kNN classifier and the features that it works on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

import common.features
from common.distributed import rank
from common.features import Cores, extract_features, network_input
from common.images import CorruptImageError, ImageSet
from common.knn import accuracy, gather_nearest, knn_predict, knn_scores, nearest
from common.transforms import MEAN, STD, evaluation_view
from tests.common.gloo import run_two

CPU = torch.device("cpu")
CLASSES, T = 5, 0.07
MakeImages = Callable[..., ImageSet]


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 12) normalised features around one centre a class, so near that neighbours disagree; labels."""
    centres = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.randn(count, 12, generator=generator)
    return F.normalize(centres[labels] + 1.6 * noise, dim=1), labels


BANK, BANK_LABELS = clusters(150, seed=1)
QUERIES, QUERY_LABELS = clusters(60, seed=2)


def scores_by_loops(k: int, temperature: float, leave_one_out: bool) -> np.ndarray:
    """(N, classes) scores in plain Python and double precision."""
    queries = BANK if leave_one_out else QUERIES
    scores = np.zeros((len(queries), CLASSES))
    for i, q in enumerate(queries.double()):
        similarity = [(float(q @ b), j) for j, b in enumerate(BANK.double()) if not (leave_one_out and i == j)]
        for s, j in sorted(similarity, reverse=True)[:k]:
            scores[i, BANK_LABELS[j]] += math.exp(s / temperature)
    return scores


# The classifier


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("k", [1, 7, 149])
def test_equals_a_brute_force_count_of_votes(k: int, temperature: float, leave_one_out: bool) -> None:
    queries = BANK if leave_one_out else QUERIES
    ranked = knn_predict(BANK, BANK_LABELS, queries, CLASSES, (k,), temperature, leave_one_out=leave_one_out)[k]
    scores = scores_by_loops(k, temperature, leave_one_out)
    expected = np.argsort(-scores, axis=1, kind="stable")  # classes without a neighbour stay in their order
    np.testing.assert_array_equal(ranked.numpy(), expected)


@pytest.mark.parametrize("k", [1, 20, 150])
def test_equals_scikit_learn(k: int) -> None:
    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / T)

    theirs = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    theirs.fit(BANK.double().numpy(), BANK_LABELS.numpy())
    ours = knn_predict(BANK, BANK_LABELS, QUERIES, CLASSES, (k,), T)[k][:, 0]
    np.testing.assert_array_equal(ours.numpy(), theirs.predict(QUERIES.double().numpy()))


def test_the_weights_matter() -> None:
    """Three far neighbours outvote a near one at a high temperature, not at a low one."""
    angles = torch.tensor([0.05, 0.6, 0.6, 0.6])
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels, query = torch.tensor([0, 1, 1, 1]), torch.tensor([[1.0, 0.0]])
    assert knn_predict(bank, labels, query, 2, (4,), temperature=0.07)[4][0, 0] == 0
    assert knn_predict(bank, labels, query, 2, (4,), temperature=1.0)[4][0, 0] == 1


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_chunk_does_not_change_the_answer(chunk: int, leave_one_out: bool) -> None:
    queries = BANK if leave_one_out else QUERIES
    whole = knn_predict(BANK, BANK_LABELS, queries, CLASSES, (5,), T, len(queries), leave_one_out)[5]
    parts = knn_predict(BANK, BANK_LABELS, queries, CLASSES, (5,), T, chunk, leave_one_out)[5]
    assert torch.equal(whole, parts)


def test_several_k_in_one_pass_equal_one_pass_each() -> None:
    together = knn_predict(BANK, BANK_LABELS, QUERIES, CLASSES, (20, 1, 5), T)
    assert list(together) == [20, 1, 5]
    for k, ranked in together.items():
        assert torch.equal(ranked, knn_predict(BANK, BANK_LABELS, QUERIES, CLASSES, (k,), T)[k])
    assert not torch.equal(together[1], together[20])


def test_left_out_an_image_does_not_vote_for_itself() -> None:
    own = knn_predict(BANK, BANK_LABELS, BANK, CLASSES, (1,), T)[1]
    other = knn_predict(BANK, BANK_LABELS, BANK, CLASSES, (1,), T, leave_one_out=True)[1]
    assert accuracy(own, BANK_LABELS) == 1.0
    assert accuracy(other, BANK_LABELS) < 0.9


@pytest.mark.parametrize("temperature", [0.001, 0.005])
def test_a_small_temperature_leaves_the_nearest_to_decide(temperature: float) -> None:
    """exp((s - 1) / T) would be 0 for every neighbour, and class 0 the answer."""
    far = F.normalize(QUERIES + 3 * torch.randn(60, 12, generator=torch.Generator().manual_seed(3)), dim=1)
    one = knn_predict(BANK, BANK_LABELS, far, CLASSES, (1,), T)[1][:, 0]
    many = knn_predict(BANK, BANK_LABELS, far, CLASSES, (10,), temperature)[10][:, 0]
    assert (one == many).float().mean() > 0.9  # not 1: near ties may still flip
    assert len(many.unique()) == CLASSES


@pytest.mark.parametrize(("k", "leave_one_out", "most"), [(151, False, 150), (150, True, 149), (0, False, 150)])
def test_a_k_that_the_bank_cannot_answer_is_an_error(k: int, leave_one_out: bool, most: int) -> None:
    with pytest.raises(ValueError, match=rf"k={k}: must lie between 1 and the {most} images of the bank"):
        knn_predict(BANK, BANK_LABELS, BANK, CLASSES, (5, k), T, leave_one_out=leave_one_out)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_an_error(temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"temperature={temperature}"):
        knn_predict(BANK, BANK_LABELS, QUERIES, CLASSES, (5,), temperature)


@pytest.mark.parametrize("block", [1, 4, 32, 149, 1000])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_the_bank_may_be_read_in_blocks_of_any_size(block: int, leave_one_out: bool) -> None:
    queries = BANK if leave_one_out else QUERIES
    own = torch.arange(len(BANK)) if leave_one_out else None
    similarity = queries @ BANK.T
    if leave_one_out:
        similarity.fill_diagonal_(-torch.inf)
    for k in (1, 7, 149):
        top, places = similarity.topk(k)
        found = nearest(BANK, BANK_LABELS, queries, k, chunk=13, block=block, own=own)
        torch.testing.assert_close(found.similarity, top)
        assert torch.equal(found.labels, BANK_LABELS[places])


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_a_raw_bank_in_half_precision_is_normalised_as_it_is_read(dtype: torch.dtype, error: float) -> None:
    raw = (BANK * torch.linspace(0.1, 9, 150)[:, None]).to(dtype)
    found = nearest(raw, BANK_LABELS, QUERIES, 20, block=32, normalise=True)
    assert found.similarity.dtype == torch.float32
    assert float((found.similarity - (QUERIES @ BANK.T).topk(20).values).abs().max()) < error
    ours, theirs = (knn_scores(x, CLASSES, 20, T)[:, 0] for x in (found, nearest(BANK, BANK_LABELS, QUERIES, 20)))
    assert (ours == theirs).double().mean() > 0.9


def test_only_the_first_classes_may_be_asked_for() -> None:
    found = nearest(BANK, BANK_LABELS, QUERIES, 20)
    whole = knn_scores(found, CLASSES, 20, T)
    assert torch.equal(knn_scores(found, CLASSES, 20, T, first=2, chunk=7), whole[:, :2])
    assert torch.equal(knn_scores(found, CLASSES, 3, T), knn_predict(BANK, BANK_LABELS, QUERIES, CLASSES, (3,), T)[3])


def part_of_the_bank(bounds: list[int], k: int) -> dict[str, Tensor]:
    """This rank's search of its part, and what all ranks have found together."""
    mine = slice(bounds[rank()], bounds[rank() + 1])
    found = gather_nearest(nearest(BANK[mine], BANK_LABELS[mine], QUERIES, k), k)
    return {"similarity": found.similarity, "labels": found.labels}


@pytest.mark.ddp
def test_two_processes_that_share_the_bank_find_what_one_finds() -> None:
    """Unequal parts, one of them smaller than k."""
    alone = nearest(BANK, BANK_LABELS, QUERIES, 20)
    for found in run_two(part_of_the_bank, [0, 138, 150], 20):
        torch.testing.assert_close(found["similarity"], alone.similarity)
        assert torch.equal(found["labels"], alone.labels)


@pytest.mark.parametrize("cores", [1, 3])
def test_each_core_takes_a_part_and_threads_are_as_before(cores: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        with Cores(CPU) as pool:
            assert torch.get_num_threads() == 1
            assert pool.map(lambda n: (n, torch.get_num_threads()), range(7)) == [(n, 1) for n in range(7)]
            with pytest.raises(ZeroDivisionError):
                pool.map(lambda n: 1 / n, [1, 0])
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)


def test_accuracy_counts_hits_among_the_first() -> None:
    ranked = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]])
    labels = torch.tensor([0, 1, 2, 2])
    assert [accuracy(ranked, labels, top) for top in (1, 2, 3)] == [0.25, 0.75, 1.0]


# Features


@pytest.fixture
def encoder() -> ResNet:
    """A ResNet-18 whose BN statistics are far from their defaults, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("resnet18", num_classes=0)
        model.train()
        with torch.no_grad():
            for _ in range(3):
                model(torch.randn(8, 3, 32, 32) * 2 + 1)
    return model


def features_by_loop(encoder: ResNet, images: ImageSet, size: int) -> Tensor:
    """One image at a time, normalised by hand."""
    modes = [module.training for module in encoder.modules()]
    encoder.eval()
    rows = []
    with torch.no_grad():
        for i in range(len(images)):
            x = evaluation_view(images.read(i), size) / 255.0
            x = torch.tensor((x - np.array(MEAN)) / np.array(STD), dtype=torch.float32).permute(2, 0, 1)[None]
            rows.append(F.normalize(encoder(x)[0], dim=0))
    for module, mode in zip(encoder.modules(), modes, strict=True):
        module.training = mode
    return torch.stack(rows)


@pytest.mark.parametrize(("batch", "workers"), [(3, 0), (256, 1)])
def test_features_equal_a_plain_loop(encoder: ResNet, make_images: MakeImages, batch: int, workers: int) -> None:
    images = make_images([0] * 10)
    features = extract_features(encoder, images, 32, CPU, batch, workers)
    assert features.shape == (10, 512)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, features_by_loop(encoder, images, 32), rtol=1e-4, atol=1e-5)


def test_network_input_is_what_torchvision_makes_of_it(make_images: MakeImages) -> None:
    view = make_images([0]).read(0).copy()
    ours = network_input(torch.from_numpy(view)[None], CPU)
    torch.testing.assert_close(ours[0], TF.normalize(TF.to_tensor(view), MEAN, STD))
    assert ours.is_contiguous(memory_format=torch.channels_last)


def state(encoder: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and statistics."""
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


@pytest.mark.parametrize("broken", [[], [2]])
def test_the_encoder_is_left_as_it_was(encoder: ResNet, make_images: MakeImages, broken: list[int]) -> None:
    """Statistics, gradients switched on or off, and the mode of every module; also when an image is unreadable."""
    encoder.layer1.eval()
    encoder.conv1.weight.requires_grad_(False)
    modes, tensors = [m.training for m in encoder.modules()], state(encoder)
    images = make_images([0] * 4, corrupt=broken)
    if broken:
        with pytest.raises(CorruptImageError, match="image2"):
            extract_features(encoder, images, 32, CPU, workers=0)
    else:
        assert not extract_features(encoder, images, 32, CPU, workers=0).requires_grad
    assert [m.training for m in encoder.modules()] == modes
    assert True in modes
    assert False in modes
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in encoder.state_dict().items())
    assert [p.requires_grad for p in encoder.parameters()].count(False) == 1


@pytest.mark.parametrize("count", [1, 4, 7])
def test_the_ranks_together_give_the_features_in_order(
    encoder: ResNet, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    images, world = make_images([0] * count), 3
    whole = extract_features(encoder, images, 32, CPU, workers=0)
    monkeypatch.setattr(common.features, "world_size", lambda: world)
    parts: list[Tensor] = []
    for r in range(world):  # first each rank's own part ...
        monkeypatch.setattr(common.features, "rank", lambda r=r: r)
        monkeypatch.setattr(common.features, "all_gather", lambda x: (parts.append(x), x.repeat(world, 1))[1])
        extract_features(encoder, images, 32, CPU, workers=0)
    assert len({len(part) for part in parts}) == 1  # a collective needs equal parts
    monkeypatch.setattr(common.features, "all_gather", lambda _: torch.cat(parts))  # ... then what they exchange
    together = extract_features(encoder, images, 32, CPU, workers=0)
    torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-5)
