"""Which images a pre-training has seen, and test images among them or among the training images."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common import seen
from common.image_check import inspect_image
from common.images import load_images
from converters import read_backbone
from pretrain.train import main as pretrain
from tests.common.pictures import write
from tests.pretrain.test_image_faults import options
from tests.transfer.own_sets import draw
from transfer import knn
from transfer.own_data.overlap import find_overlap

from .garments import ROOT, recorded

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the images and the checkpoint of a pre-training of a few steps, with some images held out."""
    folder = tmp_path_factory.mktemp("pretrained")
    for i in range(20):
        write(folder / "train" / ("cat", "dog")[i % 2] / f"{i:02}.png", 5 * i)
    assert pretrain(options(folder / "train", folder, monitor__holdout=4)) == 0
    return folder / "train", folder / "runs" / "r" / "last.pth"


def test_a_checkpoint_names_the_images_it_was_trained_on_and_no_other(pretrained: tuple[Path, Path]) -> None:
    images, checkpoint = pretrained
    found = seen.read_hashes(checkpoint)
    assert found is not None
    every = {int(inspect_image(path), 16) for path in images.rglob("*.png")}
    assert len(found) == 16
    assert {*found.tolist()} < every
    assert read_backbone(str(checkpoint)).arch == "resnet18", "converters read it as before"
    assert seen.read_hashes(Path("random:resnet18")) is None


def test_the_smallest_hashes_of_a_large_set_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of test images seen is estimated from the part that is known."""
    texts = [hashlib.blake2b(str(i).encode(), digest_size=8).hexdigest() for i in range(4000)]
    assert len(seen.sample_hashes([*texts, "", texts[0]])) == 4000
    monkeypatch.setattr(seen, "MOST", 1000)
    tensor = seen.sample_hashes(texts)
    assert len(tensor) == 1000
    assert [f"{value:016x}" for value in tensor.numpy().view(np.uint64).tolist()] == sorted(texts)[:1000]
    torch.save({seen.KEY: tensor}, tmp_path / "c.pth")
    monkeypatch.setattr(seen, "scan_files", lambda tests, *_: texts[: len(tests)])
    said = seen.find_seen(tmp_path / "c.pth", [Path(f"{i}.png") for i in range(800)], allow=True)
    known, about = int(said.split()[0]), int(said.partition("so about ")[2].split()[0])
    assert 150 < known < 250
    assert 700 < about <= 800


def write_set(root: Path) -> Path:
    for split, offset, count in (("train", 0, 8), ("val", 100, 4)):
        for i in range(count):
            draw(root / split / ("cat", "dog")[i % 2] / f"{i}.png", offset + i)
    return root


def command(root: Path, *more: str, ckpt: str = "random:resnet18") -> list[str]:
    out = [f"--{name}={root.parent / name}" for name in ("out", "records", "cache")]
    return ["--ckpt", ckpt, "--data", str(root), "--k=[1]", "--size=32", "--device=cpu", "--workers=0", *out, *more]


@pytest.mark.fault("figures that mean nothing", "knn", "some test images are training images, or look the same")
def test_copies_among_the_test_images_are_refused_or_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path / "pets")
    assert knn.main(command(root)) == 0
    (record,) = recorded(tmp_path)
    assert record.environment["data"] == "pets"
    assert len(record.environment["data_identity"]) == 12
    assert "overlap" not in record.environment
    shutil.copy(root / "train" / "cat" / "0.png", root / "val" / "cat" / "copy.png")
    capsys.readouterr()
    assert knn.main(command(root, "--force")) == 2
    assert "1 of 5 test images are training images (1 have the same bytes)" in capsys.readouterr().err
    assert knn.main(command(root, "--force", "--allow-overlap")) == 0
    (record,) = recorded(tmp_path)
    assert record.environment["overlap"].startswith("1 of 5 test images")


@pytest.mark.fault("figures that mean nothing", "knn", "test images that the pre-training has seen")
def test_test_images_of_the_pre_training_are_refused_or_recorded(
    pretrained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, checkpoint = pretrained
    root = write_set(tmp_path / "pets")
    assert knn.main(command(root, ckpt=str(checkpoint))) == 0
    for path in sorted(images.rglob("*.png"))[:6]:
        shutil.copy(path, root / "val" / path.parent.name / f"seen{path.name}")
    capsys.readouterr()
    assert knn.main(command(root, "--force", ckpt=str(checkpoint))) == 2
    said = capsys.readouterr().err
    assert f"10 test images were in the pre-training of {checkpoint}" in said
    assert "--allow-overlap" in said
    assert knn.main(command(root, "--force", "--allow-overlap", ckpt=str(checkpoint))) == 0
    assert any("pretraining_overlap" in record.environment for record in recorded(tmp_path))


def test_similar_garments_are_no_copies_and_copies_of_small_images_are_found(tmp_path: Path) -> None:
    garments = load_images(["fashion:test"], root=str(ROOT / "data"))
    dresses = (garments.labels == 3).nonzero()[0][:200]
    halves: list[list[Path]] = [[], [], []]
    for at, i in enumerate(dresses.tolist()):
        halves[at % 2].append(tmp_path / f"{i}.png")
        cv2.imwrite(str(halves[at % 2][-1]), garments.read(i))
    for path in halves[0]:
        halves[2].append(path.with_suffix(".jpg"))
        cv2.imwrite(str(halves[2][-1]), cv2.imread(str(path)), [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert find_overlap(halves[0], halves[1], allow=True)[0] == ""
    said = find_overlap(halves[0], halves[2], allow=True)[0]
    assert int(said.split()[0]) >= 98
