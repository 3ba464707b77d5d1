"""The model: encoders as torchvision's, momentum update, queues, statistics.

Shapes: N images, C embedding width, K queue length.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.config import ModelConfig
from pretrain.losses import LOSSES
from pretrain.model import UniMoCo, build_encoder, build_head

DIM = 4
SMALL = ModelConfig(arch="resnet18", dim=DIM, queue_size=10)


@pytest.fixture(scope="module")
def shared() -> UniMoCo:
    """One encoder for all tests that only look at the queues; each sets its own."""
    torch.manual_seed(0)
    return UniMoCo(SMALL)


def empty_queues(model: UniMoCo, size: int) -> UniMoCo:
    """Queues of another length, as the constructor makes them."""
    model.queue = F.normalize(torch.randn(DIM, size, generator=torch.Generator().manual_seed(9)), dim=0)
    model.label_queue = torch.full((size,), -1)
    model.index_queue = torch.full((size,), -1)
    model.queue_ptr = torch.zeros(1, dtype=torch.int64)
    return model


def keys(n: int, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """n unlike keys with labels and image numbers that tell them apart."""
    index = torch.arange(start, start + n)
    return F.normalize(torch.stack([index.sin(), index.cos(), index * 0.1, index * 0 + 1.0], 1)), index % 7, index


class TestQueues:
    def test_start_is_noise_on_the_sphere_without_labels(self) -> None:
        torch.manual_seed(0)
        model = UniMoCo(replace(SMALL, queue_size=1000, dim=16))
        torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(1000))
        assert model.queue.shape == (16, 1000)
        assert float(model.queue.mean(1).abs().max()) < 0.05  # standard error of a mean here: 0.25 / sqrt(1000) = 0.008
        assert (model.label_queue == -1).all()
        assert (model.index_queue == -1).all()
        assert model.label_queue.dtype == model.queue_ptr.dtype == torch.int64

    @pytest.mark.parametrize("n", [1, 9, 10, 11, 20, 23])  # K - 1, K, K + 1, 2 K, 2 K + 3
    @pytest.mark.parametrize("pointer", [0, 7])
    def test_one_batch_of_any_size(self, shared: UniMoCo, n: int, pointer: int) -> None:
        model = empty_queues(shared, 10)
        before = model.queue.clone()
        model.queue_ptr.fill_(pointer)
        k, labels, index = keys(n)
        model.enqueue(k, labels, index)
        assert model.queue_ptr.tolist() == [(pointer + n) % 10]
        for i in range(max(0, n - 10), n):
            place = (pointer + i) % 10
            assert torch.equal(model.queue[:, place], k[i])
            assert (int(model.label_queue[place]), int(model.index_queue[place])) == (int(labels[i]), i)
        untouched = [(pointer + i) % 10 for i in range(n, 10)]
        assert torch.equal(model.queue[:, untouched], before[:, untouched])
        assert (model.label_queue[untouched] == -1).all()

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(size=st.integers(1, 12), batches=st.lists(st.integers(1, 30), min_size=1, max_size=8))
    def test_content_is_the_last_keys(self, shared: UniMoCo, size: int, batches: list[int]) -> None:
        model = empty_queues(shared, size)
        expected: deque[tuple[Tensor, int, int]] = deque(
            [(model.queue[:, j].clone(), -1, -1) for j in range(size)], maxlen=size
        )
        for done, n in enumerate(batches):
            k, labels, index = keys(n, start=100 * done)
            model.enqueue(k, labels, index)
            expected.extend(zip(k, labels.tolist(), index.tolist(), strict=True))
        oldest = int(model.queue_ptr)
        for j, (key, label, number) in enumerate(expected):
            place = (oldest + j) % size
            assert torch.equal(model.queue[:, place], key)
            assert (int(model.label_queue[place]), int(model.index_queue[place])) == (label, number)

    def test_keys_keep_no_graph(self, shared: UniMoCo) -> None:
        model = empty_queues(shared, 10)
        k, labels, index = keys(3)
        model.enqueue(k.requires_grad_() * 2, labels, index)
        assert not model.queue.requires_grad


class TestMomentum:
    @pytest.mark.parametrize("m", [0.0, 0.5, 0.9, 0.999, 1.0])
    def test_every_parameter_follows_the_formula(self, m: float) -> None:
        torch.manual_seed(0)
        model = UniMoCo(replace(SMALL, ema_momentum=m))
        for p in model.encoder_q.parameters():
            nn.init.normal_(p)
        query = {name: p.detach().clone() for name, p in model.encoder_q.named_parameters()}
        key = {name: p.detach().clone() for name, p in model.encoder_k.named_parameters()}
        model.update_key_encoder()
        assert len(key) == 20 + 20 * 2 + 2 * 2  # convolutions, batch norms, layers of the head
        for name, p in model.encoder_k.named_parameters():
            expected = m * key[name].double() + (1 - m) * query[name].double()
            # fp32: one rounding of a sum of numbers up to 5
            torch.testing.assert_close(p.double(), expected, rtol=0, atol=1e-6)
            if m in (0, 1):
                assert torch.equal(p, key[name] if m else query[name])
        assert all(torch.equal(p, query[name]) for name, p in model.encoder_q.named_parameters())

    def test_buffers_are_not_averaged(self) -> None:
        model = UniMoCo(replace(SMALL, ema_momentum=0.0))
        for name, buffer in model.encoder_q.named_buffers():
            if "running" in name:
                buffer.fill_(5)
        before = {name: b.clone() for name, b in model.encoder_k.named_buffers()}
        model.update_key_encoder()
        assert all(torch.equal(b, before[name]) for name, b in model.encoder_k.named_buffers())

    def test_key_encoder_starts_as_a_copy_and_has_no_gradient(self, shared: UniMoCo) -> None:
        state = shared.encoder_q.state_dict()
        own = UniMoCo(SMALL)
        for name, t in own.encoder_k.state_dict().items():
            assert torch.equal(t, own.encoder_q.state_dict()[name])
            assert t.data_ptr() != own.encoder_q.state_dict()[name].data_ptr()
            assert t.shape == state[name].shape
        assert not any(p.requires_grad for p in own.encoder_k.parameters())
        assert all(p.requires_grad for p in own.encoder_q.parameters())


class TestState:
    ANCHORS = (
        "encoder_q.conv1.weight",
        "encoder_q.bn1.running_mean",
        "encoder_q.bn1.num_batches_tracked",
        "encoder_q.layer1.0.conv1.weight",
        "encoder_q.layer2.0.downsample.0.weight",
        "encoder_q.layer2.0.downsample.1.running_var",
        "encoder_q.layer4.1.bn2.bias",
        "encoder_q.fc.0.weight",
        "encoder_q.fc.2.bias",
        "encoder_k.layer4.1.conv2.weight",
        "encoder_k.fc.2.weight",
        "queue",
        "label_queue",
        "index_queue",
        "queue_ptr",
    )

    def test_names(self, shared: UniMoCo) -> None:
        state = shared.state_dict()
        assert set(self.ANCHORS) <= state.keys()
        # torchvision's resnet18 has 122 tensors, 2 of them fc; the head has 4
        assert len(state) == 2 * (122 - 2 + 4) + 4
        assert sum(name.startswith("encoder_q.") for name in state) == 124

    def test_linear_head(self) -> None:
        model = UniMoCo(replace(SMALL, head="linear"))
        assert len(model.state_dict()) == 2 * 122 + 4
        assert model.encoder_q.fc.weight.shape == (DIM, 512)  # type: ignore[union-attr]

    def test_mlp_head_is_that_of_moco_v2(self) -> None:
        head = build_head("mlp", 512, 128)
        assert isinstance(head, nn.Sequential)
        assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
        assert [tuple(p.shape) for p in head.parameters()] == [(512, 512), (512,), (128, 512), (128,)]

    def test_output_is_the_embedding(self, shared: UniMoCo) -> None:
        assert shared.encoder_q(torch.randn(2, 3, 32, 32)).shape == (2, DIM)


def torchvision_encoder(arch: str) -> nn.Module:
    model: nn.Module = getattr(torchvision.models, arch)(weights=None)
    model.fc = nn.Identity()
    return model


class TestEncoder:
    @pytest.mark.parametrize(
        "arch",
        ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d"],
    )
    def test_names_and_shapes_are_those_of_torchvision(self, arch: str) -> None:
        with torch.device("meta"):
            ours, theirs = build_encoder(arch).state_dict(), torchvision_encoder(arch).state_dict()
        assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}

    @pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d"])
    def test_computes_what_torchvision_computes(self, arch: str) -> None:
        """Strides, padding and pooling are not in the shapes."""
        torch.manual_seed(0)
        ours, theirs = build_encoder(arch).eval(), torchvision_encoder(arch).eval()
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x))

    @pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
    def test_initialisation_is_that_of_torchvision(self, arch: str) -> None:
        """timm would start the last batch norm of each block at zero."""
        torch.manual_seed(0)
        ours, theirs = build_encoder(arch).state_dict(), torchvision_encoder(arch).state_dict()
        for name, t in ours.items():
            if t.dim() == 4:
                # The spread of a sample of n numbers has a relative standard error of 1 / sqrt(2 n) <= 1.1 % here.
                assert float(t.std()) == pytest.approx(float(theirs[name].std()), rel=0.06), name
            else:
                assert torch.equal(t, theirs[name]), name

    def test_cifar_stem_keeps_small_images_large(self) -> None:
        torch.manual_seed(0)
        encoder = build_encoder("resnet18", "cifar")
        assert encoder.conv1.weight.shape == (64, 3, 3, 3)
        assert (encoder.conv1.stride, encoder.conv1.padding, encoder.conv1.bias) == ((1, 1), (1, 1), None)
        assert isinstance(encoder.maxpool, nn.Identity)
        # 1728 numbers: relative standard error 1.7 %
        assert float(encoder.conv1.weight.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.06)
        with torch.no_grad():
            assert encoder.eval().forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 512, 4, 4)
            assert build_encoder("resnet18").eval().forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 512, 1, 1)

    @pytest.mark.parametrize(
        ("arch", "stem", "message"),
        [
            ("resnet5O", "imagenet", "model.arch=resnet5O: timm has no such model; near: "),
            ("zzz", "imagenet", "model.arch=zzz: timm has no such model; near: resnet18, resnet50"),
            ("vit_base_patch16_224", "imagenet", "model.arch=vit_base_patch16_224: not a ResNet"),
            ("efficientnet_b0", "imagenet", "model.arch=efficientnet_b0: not a ResNet"),
            ("resnet50d", "cifar", "model.stem=cifar: resnet50d has a deep stem"),
        ],
    )
    def test_mistakes_are_named(self, arch: str, stem: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_encoder(arch, stem)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dim": 0}, "model.dim=0: must be 1 or more"),
            ({"queue_size": 0}, "model.queue_size=0"),
            ({"bn_groups": 0}, "model.bn_groups=0"),
            ({"ema_momentum": 1.1}, "model.ema_momentum=1.1: must lie between 0 and 1"),
            ({"ema_momentum": -0.1}, "model.ema_momentum=-0.1"),
            ({"temperature": 0.0}, "model.temperature=0.0: must be above 0"),
        ],
    )
    def test_impossible_values_are_named(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ModelConfig(**change)


def with_loss(model: UniMoCo, name: Any, mask: bool) -> UniMoCo:
    model.config, model.loss_fn, model.mask_same_image = replace(SMALL, loss=name), LOSSES[name], mask
    return model


def half_full(model: UniMoCo) -> UniMoCo:
    """A queue of 10 with 6 keys, of which one has no label."""
    model = empty_queues(model, 10)
    k, labels, index = keys(6)
    labels[2] = -1
    model.enqueue(k, labels % 3 - (labels == -1).long() * 3, index)
    assert model.label_queue.tolist() == [0, 1, -1, 0, 1, 2, -1, -1, -1, -1]
    return model


def queries() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four queries: two labelled, one unlabelled, one of a class that the queue lacks; images 0, 4, 5 are queued."""
    g = torch.Generator().manual_seed(3)
    q, k = (F.normalize(torch.randn(4, DIM, generator=g), dim=1) for _ in range(2))
    return q, k, torch.tensor([0, 1, -1, 8]), torch.tensor([0, 4, 5, 99])


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_statistics_equal_plain_loops(shared: UniMoCo, name: str, mask: bool) -> None:
    model = with_loss(half_full(shared), name, mask)
    q, k, labels, index = queries()
    chance, positives, similar, unlike = [], [], [], []
    for i in range(4):
        pos, neg = [float(q[i] @ k[i])], []
        for j in range(10):
            if mask and index[i] == model.index_queue[j]:
                continue
            same = name != "info_nce" and labels[i] != -1 and labels[i] == model.label_queue[j]
            (pos if same else neg).append(float(q[i] @ model.queue[:, j]))
        chance.append(math.log(1 + len(neg) * len(pos)) if name == "unicon" else math.log(len(neg) + len(pos)))
        positives.append(len(pos))
        similar.append(sum(pos) / len(pos))
        unlike.append(sum(neg) / len(neg))
    expected = {
        "chance": sum(chance) / 4,
        "positives": sum(positives) / 4,
        "sim_positive": sum(similar) / 4,
        "sim_positive_key": sum(float(q[i] @ k[i]) for i in range(4)) / 4,
        "sim_negative": sum(unlike) / 4,
        "embedding_std": sum(float(q[:, c].std(correction=0)) for c in range(DIM)) / DIM * math.sqrt(DIM),
        "queue_fill": 0.6,
        "queue_labelled": 0.5,
        "batch_labelled": 0.75,
    }
    found = {key: float(value) for key, value in model.statistics(q, k, labels, index).items()}
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_chance_is_the_loss_of_equal_similarities(shared: UniMoCo, name: str, mask: bool) -> None:
    model = with_loss(half_full(shared), name, mask)
    _, _, labels, index = queries()
    one = F.normalize(torch.ones(4, DIM), dim=1)
    model.queue = one[:1].T.repeat(1, 10)
    chance = float(model.statistics(one, one, labels, index)["chance"])
    assert float(model.loss(one, one, labels, index)) == pytest.approx(chance, abs=1e-5)


def test_embedding_std_distinguishes_spread_from_collapse(shared: UniMoCo) -> None:
    model = with_loss(empty_queues(shared, 10), "unicon", False)
    n, none = 4096, torch.full((4096,), -1)
    spread = F.normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    collapsed = F.normalize(torch.ones(n, DIM), dim=1)
    assert float(model.statistics(spread, spread, none, none)["embedding_std"]) == pytest.approx(1, abs=0.03)
    assert float(model.statistics(collapsed, spread, none, none)["embedding_std"]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_masked_keys_of_the_same_image_leave_the_loss(shared: UniMoCo, name: str) -> None:
    model = with_loss(half_full(shared), name, True)
    q, k, labels, index = queries()
    rows = []
    for i, j in enumerate([0, 4, 5, None]):  # where the image of query i stands in the queue
        rest = [c for c in range(10) if c != j]
        one = slice(i, i + 1)
        rows.append(LOSSES[name](q[one], k[one], model.queue[:, rest], labels[one], model.label_queue[rest], 0.2))
    torch.testing.assert_close(model.loss(q, k, labels, index), torch.stack(rows).mean())
    assert not torch.equal(with_loss(model, name, False).loss(q, k, labels, index), torch.stack(rows).mean())


def test_same_image_is_none_where_it_plays_no_role(shared: UniMoCo) -> None:
    model = with_loss(half_full(shared), "unicon", False)
    index = queries()[3]
    assert model.same_image(index) is None
    same = with_loss(model, "unicon", True).same_image(index)
    assert same is not None
    assert same.nonzero().tolist() == [[0, 0], [1, 4], [2, 5]]


def test_empty_places_are_nobodys_image(shared: UniMoCo) -> None:
    """-1 marks an empty place and is no image number."""
    model = with_loss(half_full(shared), "unicon", True)
    same = model.same_image(torch.arange(6))
    assert same is not None
    assert not same[:, 6:].any()
