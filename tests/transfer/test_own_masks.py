"""A user's images and masks: pairs, parts, classes, identity, overlap, mistakes. Needs no mmseg."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.transfer.mask_sets import CLASSES, write_image, write_mask, write_set
from transfer.own_data import segmentation
from transfer.own_data.options import epochs_for, names_segmentation
from transfer.own_data.segmentation import EPOCHS, VOC_IMAGES, SegmentationData, raw_labels, write_task
from transfer.segment import parser


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    root = write_set(tmp_path)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def given(root: Path, *options: str) -> list[str]:
    names = ("images", "masks", "classes")
    files = [f"--{name}={root / name}{'.txt' * (name == 'classes')}" for name in names]
    return [*files, f"--out={root.parent / 'out'}", *options]


def load(root: Path, *options: str) -> SegmentationData:
    return segmentation.load(parser().parse(given(root, *options)))


def refused(root: Path, *options: str) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  the tests look at the message
        load(root, *options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_parts_are_folders_and_suffixes_may_differ(mine: Path) -> None:
    (mine / "images" / "train" / "1.jpg").rename(mine / "images" / "train" / "1.JPEG")
    data = load(mine)
    assert data.train == [
        ("train/0.jpg", "train/0.png"),
        ("train/1.JPEG", "train/1.png"),
        ("train/2.jpg", "train/2.png"),
    ]
    assert [image for image, _ in data.val] == ["val/0.jpg", "val/1.jpg"]
    assert data.classes == CLASSES
    assert not data.notes
    path, said = write_task(data, None)
    assert "100 epochs of 3 images, 19 iterations of 16" in " ".join(said)
    assert (path.parent / "val.tsv").read_text() == "val/0.jpg\tval/0.png\nval/1.jpg\tval/1.png\n"
    assert epochs_for(10_582, VOC_IMAGES, EPOCHS, None) == 30


def test_a_folder_without_parts_is_split_by_a_seed(tmp_path: Path, mine: Path) -> None:
    rng = np.random.default_rng(5)
    root = tmp_path / "flat"
    for i in range(30):
        write_image(root / "images" / f"{i}.png", rng)
        write_mask(root / "masks" / f"{i}.png", np.zeros((16, 20), np.uint8))
    shutil.copy(mine / "classes.txt", root)
    data = load(root)
    assert (len(data.train), len(data.val)) == (24, 6)
    assert "one part: 20% of its images are tested on, chosen with seed 0" in data.notes[0]
    assert {*data.train} | {*data.val} == {(f"{i}.png", f"{i}.png") for i in range(30)}
    assert load(root).val == data.val
    assert load(root, "--split-seed=1").val != data.val


def test_the_identity_is_of_the_content_not_the_path(mine: Path) -> None:
    first = load(mine).identity
    moved = mine.rename(mine.parent / "moved")
    assert load(moved).identity == first
    assert load(moved, "--ignore=3").identity != first
    write_mask(moved / "masks" / "val" / "0.png", np.zeros((16, 20), np.uint8))
    assert load(moved).identity != first


def test_the_ignored_label_is_no_class() -> None:
    assert raw_labels(3, 255) == [0, 1, 2]
    assert raw_labels(3, 0) == [1, 2, 3]
    assert raw_labels(3, 1) == [0, 2, 3]


@pytest.mark.fault("figures that mean nothing", "segment", "test images among the training images of one's own data")
def test_test_images_among_the_training_images_are_refused(mine: Path) -> None:
    shutil.copy(mine / "images" / "val" / "0.jpg", mine / "images" / "train" / "again.jpg")
    shutil.copy(mine / "masks" / "val" / "0.png", mine / "masks" / "train" / "again.png")
    assert "1 of 2 test images are training images (1 have the same bytes)" in refused(mine)
    assert "1 of 2 test images" in load(mine, "--allow-overlap").overlap


@pytest.mark.fault("a newcomer's mistakes", "segment", "images, masks or classes of one's own that do not fit")
def test_mistakes_are_one_line(mine: Path) -> None:
    assert "--ignore 300: must be a label" in refused(mine, "--ignore=300")
    assert "--classes nowhere.txt: no such file" in refused(mine, "--classes=nowhere.txt")
    assert "is no folder" in refused(mine, "--masks=nowhere")
    with pytest.raises(ValueError, match="--masks, --classes missing"):
        names_segmentation(parser().parse([f"--images={mine}"]))
    (mine / "classes.txt").write_text("cat\ncat\n")
    assert "class 'cat' is listed twice" in refused(mine)
    (mine / "classes.txt").write_text("cat\n")
    assert "1 class names: give two or more" in refused(mine)
    (mine / "classes.txt").write_text("\n".join(CLASSES))
    (mine / "masks" / "val" / "1.png").unlink()
    assert "1.jpg: 1 of 5 images have no mask of the same name below --masks" in refused(mine)
    (mine / "images" / "val" / "1.jpg").unlink()
    shutil.copy(mine / "images" / "val" / "0.jpg", mine / "images" / "val" / "0.png")
    assert "two files of this name with other suffixes" in refused(mine)
