"""timm:NAME, torchvision:NAME, random:ARCH."""

import pytest
import torch

import converters
from converters import ReadOptions


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("random:resnet18", "resnet18"),
        ("random:resnet18_cifar?seed=3", "resnet18_cifar"),
        ("timm:resnet18d?pretrained=false", "resnet18d"),
        ("torchvision:resnext50_32x4d?pretrained=false&seed=1", "resnext50_32x4d"),
    ],
)
def test_networks_by_name(name: str, arch: str) -> None:
    backbone = converters.read_backbone(name)
    assert (backbone.arch, backbone.source.path) == (arch, name)
    assert backbone.build()(torch.zeros(1, 3, 32, 32)).shape == (1, backbone.feature_dim)


def test_a_seed_decides_the_weights_and_leaves_the_global_one() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (converters.read_backbone(f"random:resnet18?seed={seed}") for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.source.sha256 == same.source.sha256 != other.source.sha256
    assert one.compare(same.tensors) == 120


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:", "random: names no network; random:resnet50 does"),
        ("random:resnet51", "architecture 'resnet51' is unknown"),
        ("random:resnet18?sed=3", "option 'sed' is unknown; random: takes seed"),
        ("random:resnet18?seed=x", "seed=x is not a whole number"),
        ("random:resnet18?seed=²", "seed=² is not a whole number"),
        ("timm:resnet18?pretrained=no", "pretrained=no is neither true nor false"),
        ("timm:resnet51", r"timm has no 'resnet51'; timm.list_models"),
        ("timm:vit_tiny_patch16_224?pretrained=false", "is a VisionTransformer, not a ResNet"),
        ("torchvision:vgg11", "torchvision has no ResNet 'vgg11'; it has resnet101"),
        ("timm:seresnet18?pretrained=false", "left over: layer1.0.se.fc1.weight"),
        ("timm:resnet50_gn?pretrained=false", "missing: bn1.running_mean"),
        ("timm:resnetblur18?pretrained=false", "has resnet18's tensors and other features"),
    ],
)
def test_mistakes(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        converters.read_backbone(name)


def test_options_for_files_are_refused() -> None:
    with pytest.raises(
        ValueError, match="is one whole network: --weights, --arch, --from, --drop and --trust are for files"
    ):
        converters.read_backbone("random:resnet18", ReadOptions(weights="key"))


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ValueError, match=r"could not be fetched \(ConnectionError: no route to host\); download"
    ) as raised:
        converters.read_backbone("timm:resnet18")
    assert "\n" not in str(raised.value)
    from torchvision.models import _api

    monkeypatch.setattr(_api.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(ValueError, match="torchvision:resnet18 could not be fetched"):
        converters.read_backbone("torchvision:resnet18")
