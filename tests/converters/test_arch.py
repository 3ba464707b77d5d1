"""Networks are recognised by their shapes."""

import pytest
import torch

from converters import arch as archs
from converters import read_backbone

PLAIN = [name for name in archs.ARCHS if not name.endswith("_pad2")]


@pytest.mark.parametrize("name", PLAIN)
def test_every_network_is_recognised_by_its_shapes(name: str) -> None:
    assert archs.infer(archs.expected(name)) == name


def test_the_format_decides_which_cifar_stem_is_meant() -> None:
    assert archs.infer(archs.expected("resnet18_cifar"), cifar="_cifar_pad2") == "resnet18_cifar_pad2"


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "resnet101"])
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    from torchvision import models

    with torch.device("meta"):
        state = models.get_model(name).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items() if not k.startswith("fc.")} == archs.expected(name)


@pytest.mark.parametrize("name", ["resnet18d", "resnet26", "resnet50c", "resnet50d", "resnet50s", "resnet50t"])
def test_deep_stems_are_timms(name: str) -> None:
    import timm

    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == archs.expected(name)


def test_resnet50_has_53_convolutions_and_318_tensors() -> None:
    expected = archs.expected("resnet50")
    assert len(expected) == 318
    assert sum(len(shape) == 4 for shape in expected.values()) == 53
    assert sum(not name.endswith("num_batches_tracked") for name in expected) == 265


def test_an_unknown_depth_says_what_was_found() -> None:
    shapes = {k: v for k, v in archs.expected("resnet50").items() if not k.startswith("layer3.5.")}
    with pytest.raises(ValueError, match=r"no known ResNet has Bottleneck × \(3, 4, 5, 3\)"):
        archs.infer(shapes)


def test_a_widened_resnet_says_what_was_found() -> None:
    shapes = {k: tuple(2 * n if n >= 64 else n for n in s) for k, s in archs.expected("resnet50").items()}
    with pytest.raises(ValueError, match=r"conv1.weight \(128, 3, 7, 7\)"):
        archs.infer(shapes)


def test_a_vision_transformer_is_not_a_resnet() -> None:
    with pytest.raises(ValueError, match=r"not a ResNet: no 4-dimensional layer1.0.conv1.weight"):
        archs.infer({"blocks.0.attn.qkv.weight": (9, 3)})


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"architecture 'resnet51' is unknown; known are resnet18, resnet34"):
        archs.build("resnet51")


def test_a_backbone_is_built_from_copies_of_its_tensors_without_random_numbers() -> None:
    backbone, before = read_backbone("random:resnet18"), torch.random.get_rng_state()
    state = backbone.build().state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(state[name], tensor) for name, tensor in backbone.tensors.items())
    assert not {tensor.data_ptr() for tensor in state.values()} & {t.data_ptr() for t in backbone.tensors.values()}
