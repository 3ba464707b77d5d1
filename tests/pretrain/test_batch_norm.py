"""Split batch normalisation, the shuffling of keys, and that a query and its key share no statistics."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.batch_norm import (
    SplitBatchNorm2d,
    all_to_all,
    running_statistics,
    set_groups,
    shuffle,
    split_batch_norm,
)
from pretrain.config import Config, ModelConfig, OptimConfig
from pretrain.engine import Training
from pretrain.model import UniMoCo, embed

CHANNELS = 5


def plain_and_split(groups: int) -> tuple[nn.BatchNorm2d, SplitBatchNorm2d]:
    """Two layers with the same random parameters and statistics."""
    torch.manual_seed(0)
    plain, split = nn.BatchNorm2d(CHANNELS), SplitBatchNorm2d(CHANNELS)
    for t in (plain.weight, plain.bias, plain.running_mean, plain.running_var):
        assert t is not None
        nn.init.uniform_(t, 0.5, 1.5)
    split.load_state_dict(plain.state_dict())
    split.groups = groups
    return plain, split


def images(n: int = 12, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    """(n, CHANNELS, 3, 4): every image with its own mean and scale."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, CHANNELS, 3, 4, generator=g) * torch.rand(n, 1, 1, 1, generator=g) + torch.arange(n)[
        :, None, None, None
    ].remainder(4)
    return x.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_equals_batch_norm_of_each_part(groups: int, dtype: torch.dtype, channels_last: bool) -> None:
    plain, split = plain_and_split(groups)
    x = images(dtype=dtype, channels_last=channels_last).requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours, theirs = split(x), torch.cat([plain(part) for part in y.chunk(groups)])
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)
    torch.testing.assert_close(split.weight.grad, plain.weight.grad)
    torch.testing.assert_close(split.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [2, 3])
def test_running_statistics_are_the_mean_of_the_groups(groups: int, dtype: torch.dtype) -> None:
    _, split = plain_and_split(groups)
    each = [plain_and_split(1)[0] for _ in range(groups)]
    split(images(dtype=dtype))
    for plain, part in zip(each, images(dtype=dtype).chunk(groups), strict=True):
        plain(part)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(plain, name) for plain in each]).mean(0)
        torch.testing.assert_close(getattr(split, name), mean)
    assert int(split.num_batches_tracked) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [1, 4])
def test_evaluation_is_batch_norm(groups: int) -> None:
    plain, split = plain_and_split(groups)
    before = {name: t.clone() for name, t in split.state_dict().items()}
    x = images(7)  # need not divide
    assert torch.equal(split.eval()(x), plain.eval()(x))
    assert all(torch.equal(t, before[name]) for name, t in split.state_dict().items())


def test_one_group_trains_as_batch_norm() -> None:
    plain, split = plain_and_split(1)
    assert torch.equal(split(images()), plain(images()))
    for name, t in plain.state_dict().items():
        assert torch.equal(t, split.state_dict()[name])


def test_state_names_are_those_of_batch_norm() -> None:
    assert list(SplitBatchNorm2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())


def test_a_batch_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(ValueError, match="a batch of 7 images does not divide into 2 groups"):
        plain_and_split(2)[1](images(7))


def test_every_layer_is_split_and_keeps_its_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    weight = model[1].weight
    names = list(model.state_dict())
    assert split_batch_norm(model) is model
    set_groups(model, 3)
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [(type(m), m.groups) for m in layers if isinstance(m, SplitBatchNorm2d)] == [(SplitBatchNorm2d, 3)] * 2
    assert model[1].weight is weight
    assert list(model.state_dict()) == names
    assert [t.shape for t in running_statistics(model)] == [torch.Size([4])] * 4


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.BatchNorm3d(4)])
def test_other_batch_norms_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"{type(layer).__name__}: only BatchNorm2d"):
        split_batch_norm(nn.Sequential(layer))


examples = settings(max_examples=60, deadline=None, derandomize=True)
groups_and_sizes = {"groups": st.integers(1, 9), "size": st.integers(1, 30), "seed": st.integers(0, 2**40)}


@examples
@given(**groups_and_sizes)
def test_shuffle_is_a_permutation_that_mixes_groups_equally(groups: int, size: int, seed: int) -> None:
    order = shuffle(groups * size, groups, (seed, 3))
    assert sorted(order.tolist()) == list(range(groups * size))
    for new_group in order.view(groups, size):
        shares = Counter((new_group // size).tolist())
        assert {shares[old] for old in range(groups)} <= {size // groups, -(-size // groups)}


@examples
@given(**groups_and_sizes)
def test_shuffle_depends_on_its_seed_alone(groups: int, size: int, seed: int) -> None:
    torch.manual_seed(seed % 1000)
    before = torch.get_rng_state()
    first = shuffle(groups * size, groups, (seed, 0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(seed % 1000 + 1)
    assert torch.equal(shuffle(groups * size, groups, (seed, 0)), first)


def test_another_step_or_seed_shuffles_otherwise() -> None:
    orders = {tuple(shuffle(64, 4, seed).tolist()) for seed in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2)]}
    assert len(orders) == 5


def test_every_image_comes_to_every_group() -> None:
    """Image 0 of 4 groups, over 400 steps: about 100 times in each (binomial, standard deviation 9)."""
    places = Counter(int((shuffle(32, 4, (0, step)) == 0).nonzero()) // 8 for step in range(400))
    assert all(60 < places[group] < 140 for group in range(4)), places


@examples
@given(**groups_and_sizes)
def test_sorting_undoes_shuffle(groups: int, size: int, seed: int) -> None:
    order = shuffle(groups * size, groups, (seed,))
    x = torch.arange(groups * size) * 10
    assert torch.equal(all_to_all(x, order)[order.argsort()], x)
    assert torch.equal(all_to_all(x, order), x[order])


def training(groups: int, batch: int = 16) -> Training:
    torch.manual_seed(0)
    model = ModelConfig(arch="resnet18", dim=8, queue_size=16, bn_groups=groups)
    config = Config(seed=5, model=model, optim=OptimConfig(batch=batch, precision="fp32"))
    return Training(config, UniMoCo(model), torch.device("cpu"), steps_per_epoch=1)


def who_moves_whom(groups: int) -> SimpleNamespace:
    """For every image: the images whose change changes its query, and those whose change changes its key."""
    t = training(groups)
    views = torch.randint(256, (16, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = SimpleNamespace(query=[set() for _ in range(16)], key=[set() for _ in range(16)])
    with torch.no_grad():
        queries, keys = embed(t, t.encode_q, views), t.model.encode_keys(t, views)
        for changed in range(16):
            other = views.clone()
            other[changed] = 255 - other[changed]
            for sets, before, after in (
                (found.query, queries, embed(t, t.encode_q, other)),
                (found.key, keys, t.model.encode_keys(t, other)),
            ):
                for i in (before != after).any(1).nonzero().flatten().tolist():
                    sets[i].add(changed)
    return found


def test_a_query_and_its_key_have_only_their_own_image_in_common() -> None:
    """4 groups of 4: the statistics of a query come from its group, those of its key from one of every group."""
    found = who_moves_whom(4)
    for i in range(16):
        assert found.query[i] == set(range(i // 4 * 4, i // 4 * 4 + 4))
        assert len(found.key[i]) == 4
        assert {j // 4 for j in found.key[i]} == {0, 1, 2, 3}
        assert found.query[i] & found.key[i] == {i}


def test_keys_do_move_between_steps() -> None:
    t = training(4)
    views = torch.randint(256, (16, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    first = t.model.encode_keys(t, views)
    t.step = 1
    assert not torch.equal(t.model.encode_keys(t, views), first)


def test_keys_come_back_in_the_order_of_their_images() -> None:
    """Key i is that of image i, wherever it was normalised: identical images in pairs give identical keys."""
    t = training(1)  # one group, so that statistics are the same for all
    views = torch.randint(256, (16, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    t.model.encoder_k.load_state_dict(t.model.encoder_q.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(t.model.encode_keys(t, views), embed(t, t.encode_q, views), rtol=1e-4, atol=1e-5)
