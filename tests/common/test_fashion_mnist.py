"""Fashion-MNIST is completed from what is there, and a download that fails is one line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torchvision

from common import fashion_mnist


@pytest.fixture
def packed(tmp_path: Path, data_root: str) -> Path:
    """The four packed files, as Debian's package and a download have them; the training images are left empty."""
    folder = tmp_path / "packed"
    folder.mkdir()
    for name in fashion_mnist.FILES:
        content = b"" if name.startswith("train-images") else Path(data_root, "FashionMNIST/raw", name).read_bytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content or b"0", compresslevel=0))
    return folder


def test_files_that_are_missing_or_empty_are_unpacked(
    packed: Path, tmp_path: Path, data_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", packed)
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-images-idx3-ubyte").touch()
    kept = raw / "train-labels-idx1-ubyte"
    kept.write_bytes(b"mine")
    ours = fashion_mnist.load(tmp_path, "test")
    theirs = torchvision.datasets.FashionMNIST(data_root, train=False)
    assert ours.data.equal(theirs.data)
    assert ours.targets.equal(theirs.targets)
    assert kept.read_bytes() == b"mine"
    assert sorted(p.name for p in raw.iterdir()) == sorted(fashion_mnist.FILES)


def test_files_put_there_by_hand_are_taken(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in packed.iterdir():
        file.replace(raw / file.name)
    assert len(fashion_mnist.load(tmp_path, "test")) == 10_000


@pytest.mark.fault("surroundings", "pretrain", "Fashion-MNIST that cannot be downloaded")
def test_a_failed_download_says_where_to_put_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [f"file://{tmp_path}/nowhere/"])
    raw = tmp_path / "FashionMNIST" / "raw"
    with pytest.raises(ValueError, match=rf"(?s)no Fashion-MNIST in {raw}, and its download failed .*: put train"):
        fashion_mnist.load(tmp_path, "train")
    assert [*raw.iterdir()] == []


def test_a_mistyped_folder_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no Fashion-MNIST in {tmp_path}/no/such: there is no such folder"):
        fashion_mnist.load(tmp_path / "no" / "such", "train")
    assert [*tmp_path.iterdir()] == []
