"""Converted files: names, bytes, settings, and networks that a framework cannot build."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import converters
from converters.targets import TARGETS
from converters.verify import verify

SUFFIXES = [(name, suffix) for name, target in TARGETS.items() for suffix in target.suffixes]


def published_moco_mapping(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """MoCo's own mapping to detectron2, as protocols describe it; it keeps the head and the counters as junk."""
    mapped = {}
    for key, value in state.items():
        if not key.startswith("module.encoder_q."):
            continue
        name = key[len("module.encoder_q.") :]
        if "layer" not in name:
            name = "stem." + name
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
        for index in (1, 2, 3):
            name = name.replace(f"bn{index}", f"conv{index}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        mapped[name] = value.numpy()
    return mapped


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_moco_keys_convert_as_moco_publishes(arch: str, sample: Callable[..., Path], tmp_path: Path) -> None:
    path = sample("MoCo v1", arch)
    TARGETS["detectron2"].save(converters.read_backbone(path), tmp_path / "x.pkl")
    content = pickle.loads((tmp_path / "x.pkl").read_bytes())
    theirs = published_moco_mapping(torch.load(path, weights_only=True)["state_dict"])
    junk = {key for key in theirs if key.startswith("stem.fc.") or key.endswith("num_batches_tracked")}
    assert set(content["model"]) == set(theirs) - junk
    assert len(content["model"]) == {"resnet18": 100, "resnet50": 265}[arch]
    for key, array in content["model"].items():
        np.testing.assert_array_equal(array, theirs[key])
        assert array.dtype == np.float32
    assert content["__author__"] == "unimoco-suite"
    assert content["matching_heuristics"] is True


def test_what_mocos_own_converter_wrote_is_read(sample: Callable[..., Path], tmp_path: Path) -> None:
    path = sample("MoCo v1")
    theirs = published_moco_mapping(torch.load(path, weights_only=True)["state_dict"])
    content = {"model": theirs, "__author__": "MOCO", "matching_heuristics": True}
    (tmp_path / "theirs.pkl").write_bytes(pickle.dumps(content))
    backbone = converters.read_backbone(path)
    assert backbone.compare(converters.read_backbone(tmp_path / "theirs.pkl").tensors) == 120


def test_a_detectron2_file_opens_under_old_numpy(sample: Callable[..., Path], tmp_path: Path) -> None:
    TARGETS["detectron2"].save(converters.read_backbone(sample("MoCo v1")), tmp_path / "x.pkl")
    assert b"numpy._core" not in (tmp_path / "x.pkl").read_bytes()


@pytest.mark.parametrize(("target", "suffix"), SUFFIXES)
def test_the_same_input_gives_the_same_bytes(
    target: str, suffix: str, sample: Callable[..., Path], tmp_path: Path
) -> None:
    contents: list[dict[str, bytes]] = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / f"x{suffix}"
        TARGETS[target].save(converters.read_backbone(sample("DINO")), path)
        contents.append({p.name: p.read_bytes() for p in sorted((tmp_path / folder).iterdir())})
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("target", "suffix"), SUFFIXES)
@pytest.mark.parametrize("row", ["MoCo v1", "timm, deep stem", "SupContrast"])
def test_our_own_files_are_read_back(
    target: str, suffix: str, row: str, sample: Callable[..., Path], tmp_path: Path
) -> None:
    backbone = converters.read_backbone(sample(row))
    if not TARGETS[target].builds(backbone.arch):
        pytest.skip("the framework has no such network")
    path = tmp_path / f"x{suffix}"
    TARGETS[target].save(backbone, path)
    again = converters.read_backbone(path)
    assert again.arch == backbone.arch
    counters = {k: v for k, v in backbone.tensors.items() if k.endswith("num_batches_tracked")}
    assert again.compare(backbone.tensors | (again.tensors if target == "detectron2" else {})) == len(again.tensors)
    if target != "detectron2":
        assert all(torch.equal(again.tensors[key], value) for key, value in counters.items())


def test_files_carry_where_they_came_from(sample: Callable[..., Path], tmp_path: Path) -> None:
    backbone = converters.read_backbone(sample("this suite"))
    for target, suffix in (("detectron2", ".pkl"), ("openmmlab", ".pth")):
        TARGETS[target].save(backbone, tmp_path / f"x{suffix}")
        meta = converters.read_backbone(tmp_path / f"x{suffix}").meta
        assert (meta["method"], meta["label_ratio"]) == ("unimoco", 0.1)
        assert meta["source_sha256"] == backbone.source.sha256


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_and_timm_load_strict(suffix: str, sample: Callable[..., Path], tmp_path: Path) -> None:
    backbone = converters.read_backbone(sample("MoCo v1"))
    for target in ("torchvision", "timm"):
        TARGETS[target].save(backbone, tmp_path / f"x{suffix}")
        (check,) = verify(backbone, target, tmp_path / f"x{suffix}")
        assert (check.tensors, check.convs, check.norms) == (120, 20, 20)
        assert max(check.deltas.values()) <= 1e-6


@pytest.mark.parametrize(
    ("target", "arch", "layer"),
    [
        ("detectron2", "resnet50d", r"conv1.0.weight \(32, 3, 3, 3\).*layer1.0.downsample.1.weight"),
        ("detectron2", "resnet50c", r"conv1.0.weight \(32, 3, 3, 3\)"),
        ("detectron2", "resnet18_cifar", r"conv1.weight \(64, 3, 3, 3\); --to torchvision keeps it"),
        ("detectron2", "resnet26", r"layer3.1.conv2.weight \(256, 256, 3, 3\)"),
        ("openmmlab", "wide_resnet50_2", r"layer3.5.conv2.weight \(512, 512, 3, 3\)"),
        ("openmmlab", "resnet18_cifar", r"conv1.weight \(64, 3, 3, 3\)"),
        ("openmmlab", "resnet50t", r"conv1.0.weight \(24, 3, 3, 3\)"),
        ("torchvision", "resnet50d", r"conv1.0.weight"),
        ("torchvision", "resnet18d", r"conv1.0.weight.*layer2.0.downsample.1.weight \(128, 64, 1, 1\)"),
        ("detectron2", "resnet34d", r"conv1.0.weight.*layer2.0.downsample.1.weight \(128, 64, 1, 1\)"),
        ("torchvision", "resnext101_32x4d", r"layer3.22.conv2.weight \(512, 16, 3, 3\)"),
        ("timm", "resnet18c", r"conv1.0.weight"),
    ],
)
@pytest.mark.fault("converters", "convert", "a network that the framework does not have, such as resnet18d")
def test_what_a_framework_cannot_hold_is_named(target: str, arch: str, layer: str, tmp_path: Path) -> None:
    backbone = converters.read_backbone(f"random:{arch}")
    with pytest.raises(ValueError, match=f"{target} builds no {arch}: it has no layer for {layer}"):
        TARGETS[target].save(backbone, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arch", ["resnet18", "resnet18_cifar", "resnet18_cifar_pad2", "resnext50_32x4d", "resnet18d"])
@pytest.mark.parametrize("target", ["torchvision", "timm"])
def test_other_networks_verify(arch: str, target: str, tmp_path: Path) -> None:
    if not TARGETS[target].builds(arch):
        pytest.skip("the library has no such network")
    backbone, path = converters.read_backbone(f"random:{arch}"), tmp_path / f"x{TARGETS[target].suffixes[0]}"
    TARGETS[target].save(backbone, path)
    assert verify(backbone, target, path, np.full((32, 64, 3), 99, np.uint8))[0].tensors == len(backbone.tensors)


def broken(content: dict[str, torch.Tensor], how: str) -> dict[str, Any]:
    name = "layer2.0.conv1.weight"
    if how == "missing":
        return {key: value for key, value in content.items() if key != name}
    if how == "changed":
        return content | {name: content[name] + 1e-6}
    return content | {"conv1.weight": content["conv1.weight"].flip(1)}  # BGR


@pytest.mark.parametrize(("how", "message"), [("changed", "layer2.0.conv1.weight"), ("BGR", "conv1.weight")])
def test_a_changed_file_is_not_equal(how: str, message: str, sample: Callable[..., Path], tmp_path: Path) -> None:
    backbone, path = converters.read_backbone(sample("MoCo v1")), tmp_path / "x.pth"
    TARGETS["torchvision"].save(backbone, path)
    torch.save(broken(torch.load(path, weights_only=True), how), path)
    with pytest.raises(converters.VerificationError, match=f"1 different: {re.escape(message)}"):
        verify(backbone, "torchvision", path)


def test_a_file_without_a_tensor_does_not_load_strict(sample: Callable[..., Path], tmp_path: Path) -> None:
    backbone, path = converters.read_backbone(sample("MoCo v1")), tmp_path / "x.pth"
    TARGETS["torchvision"].save(backbone, path)
    torch.save(broken(torch.load(path, weights_only=True), "missing"), path)
    with pytest.raises(converters.VerificationError, match=r"could not load .*Missing key.*layer2.0.conv1.weight"):
        verify(backbone, "torchvision", path)
