"""Identity of a backbone: which pre-trainings are one row of a table, and which seed each has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.files import sha256
from converters import read_backbone
from converters.targets import TARGETS


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the libraries build random networks where pre-trained ones are asked for."""
    import timm
    from torchvision import models

    build, get_model = timm.create_model, models.get_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: build(name, **options | {"pretrained": False}))
    monkeypatch.setattr(models, "get_model", lambda name, **options: get_model(name, weights=None))


@pytest.mark.parametrize(
    ("name", "identity", "seed"),
    [
        ("random:resnet18", "random:resnet18", 0),
        ("random:resnet18?seed=3", "random:resnet18", 3),
        ("timm:resnet18?pretrained=false&seed=2", "timm:resnet18?pretrained=false", 2),
        ("torchvision:resnet18?seed=2&pretrained=False", "torchvision:resnet18?pretrained=false", 2),
    ],
)
def test_random_weights_are_identified_without_their_seed(name: str, identity: str, seed: int) -> None:
    backbone = read_backbone(name)
    assert (backbone.backbone_id, backbone.seed, backbone.meta["method"]) == (identity, seed, "random")


@pytest.mark.usefixtures("offline")
def test_two_timm_names_are_two_backbones_and_neither_is_called_supervised() -> None:
    one, other = (read_backbone(f"timm:{name}") for name in ("resnet18.a1_in1k", "resnet18.fb_ssl_yfcc100m_ft_in1k"))
    assert (one.backbone_id, other.backbone_id) == ("timm:resnet18.a1_in1k", "timm:resnet18.fb_ssl_yfcc100m_ft_in1k")
    assert {one.meta["method"], other.meta["method"]} == {"timm"}
    assert (one.seed, other.seed) == (None, None)


@pytest.mark.usefixtures("offline")
def test_library_weights_have_no_seed() -> None:
    backbone = read_backbone("torchvision:resnet18?seed=4&pretrained=true")
    assert (backbone.backbone_id, backbone.seed) == ("torchvision:resnet18", None)
    assert backbone.meta["method"] == "torchvision"


@pytest.mark.parametrize("name", ["torchvision", "Barlow Twins", "OpenSelfSup, DenseCL"])
def test_foreign_files_are_identified_by_their_sha256(name: str, sample: Callable[..., Path]) -> None:
    backbone = read_backbone(sample(name))
    assert (backbone.backbone_id, backbone.seed) == (f"sha256-{sha256(sample(name))}", None)


def test_a_file_in_torchvision_format_has_no_method(sample: Callable[..., Path]) -> None:
    assert "method" not in read_backbone(sample("torchvision")).meta


def save(folder: Path, content: Any, **meta: object) -> Path:
    torch.save(content | {"meta": content["meta"] | meta}, folder / "file.pth")
    return folder / "file.pth"


def test_our_checkpoints_are_identified_by_their_backbone_id(sample: Callable[..., Path], tmp_path: Path) -> None:
    content = torch.load(sample("this suite"), weights_only=True)
    backbone = read_backbone(save(tmp_path, content, backbone_id="unimoco-3f2a00112233", seed=5, label_seed=1))
    assert (backbone.backbone_id, backbone.seed) == ("unimoco-3f2a00112233", 5)
    old = read_backbone(save(tmp_path, content, seed=5))
    assert (old.backbone_id, old.seed) == (f"sha256-{sha256(tmp_path / 'file.pth')}", None)


def test_the_identity_and_seed_that_a_foreign_file_claims_do_not_count(
    sample: Callable[..., Path], tmp_path: Path
) -> None:
    content = torch.load(sample("OpenSelfSup, DenseCL"), weights_only=True)
    path = save(tmp_path, content, backbone_id="unimoco-3f2a00112233", seed=0)
    backbone = read_backbone(path)
    assert (backbone.backbone_id, backbone.seed) == (f"sha256-{sha256(path)}", None)


def test_converted_files_are_identified_by_their_own_sha256_and_name_their_origin(tmp_path: Path) -> None:
    backbone, path = read_backbone("random:resnet18?seed=3"), tmp_path / "x.pth"
    TARGETS["openmmlab"].save(backbone, path)
    converted = read_backbone(path)
    assert (converted.backbone_id, converted.seed) == (f"sha256-{sha256(path)}", None)
    assert converted.meta["source_id"] == "random:resnet18"
