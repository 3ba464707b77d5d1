"""Features of the frozen backbone: what they are, where they are kept, and when they are computed again."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.features import extract_features
from common.images import CorruptImageError, load_images
from converters import Backbone
from tests.transfer.garments import ROOT, write_garments
from transfer.benchmark import read_checkpoint
from transfer.classification.features import FeatureCache, fingerprint

CPU = torch.device("cpu")


@pytest.fixture
def garments(tmp_path: Path) -> Path:
    return write_garments(tmp_path / "garments", train=6, test=3)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return read_checkpoint("random:resnet18", 0)


def extract(backbone: Backbone, folder: Path, cache: Path | None, **how: object) -> Tensor:
    extraction = replace(FeatureCache(32, CPU, folder=cache, workers=0), **how)  # type: ignore[arg-type]
    return extraction(backbone, backbone.build(), load_images([str(folder)]), "garments")


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.features"))


def test_normalised_they_equal_those_of_pre_training_knn(backbone: Backbone, garments: Path, tmp_path: Path) -> None:
    raw = extract(backbone, garments / "train", tmp_path / "cache")
    theirs = extract_features(backbone.build(), load_images([str(garments / "train")]), 32, CPU, workers=0)
    assert raw.shape == (12, 512)
    assert float(raw.norm(dim=1).min()) > 2  # not normalised
    torch.testing.assert_close(F.normalize(raw, dim=1), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("store", [torch.float32, torch.float16, torch.bfloat16])
def test_read_from_their_file_they_are_the_same_bits(
    store: torch.dtype, backbone: Backbone, garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = extract(backbone, garments / "train", None, store=store)
    first = extract(backbone, garments / "train", tmp_path / "cache", store=store)
    (path,) = kept(tmp_path / "cache")
    changed = path.stat().st_mtime_ns
    again = extract(backbone, garments / "train", tmp_path / "cache", store=store)
    assert memory.dtype == first.dtype == again.dtype == store
    assert torch.equal(memory, first)
    assert torch.equal(first, again)
    assert path.stat().st_mtime_ns == changed
    shown = capsys.readouterr().out
    assert "12 x 512, 0 MiB" in shown
    assert "(reused)" in shown.splitlines()[-1]
    assert json.loads(path.with_suffix(".json").read_text())["store"] == str(store)


def test_the_file_name_depends_on_all_that_the_features_depend_on(
    backbone: Backbone, garments: Path, tmp_path: Path
) -> None:
    cache, train = tmp_path / "cache", garments / "train"
    extract(backbone, train, cache)
    extract(backbone, garments / "test", cache)
    extract(backbone, train, cache, size=40)
    extract(backbone, train, cache, store=torch.float16)
    extract(backbone, train, cache, dtype=torch.bfloat16)
    extract(read_checkpoint("random:resnet18", 1), train, cache)
    assert len(kept(cache)) == 6
    picture = next((train / "1").iterdir())
    os.utime(picture, (time.time() + 10, time.time() + 10))  # written again
    extract(backbone, train, cache)
    assert len(kept(cache)) == 7


def test_the_fingerprint_of_images_in_memory_is_that_of_their_pixels() -> None:
    images = load_images(["fashion:test"], root=str(ROOT / "data"))
    some = images.subset(range(5))  # type: ignore[arg-type]
    assert images.in_memory
    assert fingerprint(some) == fingerprint(images.subset(range(5)))  # type: ignore[arg-type]
    assert fingerprint(some) != fingerprint(images.subset(range(1, 6)))  # type: ignore[arg-type]


def test_an_incomplete_file_is_computed_again(backbone: Backbone, garments: Path, tmp_path: Path) -> None:
    whole = extract(backbone, garments / "train", tmp_path / "cache").clone()
    (path,) = kept(tmp_path / "cache")
    os.truncate(path, 1000)
    assert torch.equal(extract(backbone, garments / "train", tmp_path / "cache"), whole)


def test_an_image_that_cannot_be_read_leaves_nothing_behind(backbone: Backbone, garments: Path, tmp_path: Path) -> None:
    broken = next((garments / "train" / "8").iterdir())
    broken.write_bytes(b"")
    with pytest.raises(CorruptImageError, match=broken.name):
        extract(backbone, garments / "train", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_features_that_are_not_finite_are_an_error(backbone: Backbone, garments: Path) -> None:
    network = backbone.build()
    with torch.no_grad():
        network.get_parameter("conv1.weight")[0] = torch.nan
    with pytest.raises(ValueError, match=r"features of garments are not finite in torch\.float32"):
        FeatureCache(32, CPU, workers=0)(backbone, network, load_images([str(garments / "train")]), "garments")


def test_those_of_chosen_images_are_rows_of_the_whole(backbone: Backbone, garments: Path, tmp_path: Path) -> None:
    """A fraction of the labels, of a part of the images, needs no features of its own where those of the part exist."""
    images = load_images([str(garments / "train")])
    part = images.subset(np.arange(10))
    chosen = part.subset(np.array([7, 2, 5]))
    cache = FeatureCache(32, CPU, folder=tmp_path / "cache", workers=0)
    alone = cache(backbone, backbone.build(), chosen, "three")
    assert len(kept(tmp_path / "cache")) == 1, "of the whole there is no file yet"
    kept(tmp_path / "cache")[0].unlink()
    whole = cache(backbone, backbone.build(), part, "ten")
    found = cache(backbone, torch.nn.Identity(), chosen, "three")
    assert torch.equal(found, whole[[7, 2, 5]])
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
    assert len(kept(tmp_path / "cache")) == 1
