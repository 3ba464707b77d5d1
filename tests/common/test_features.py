"""Feature extraction: network input, cores, ranks, and the state of the encoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

import common.features
from common.features import Cores, extract_features, network_input
from common.images import CorruptImageError, ImageSet
from common.transforms import MEAN, STD, evaluation_view

CPU = torch.device("cpu")
MakeImages = Callable[..., ImageSet]


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
