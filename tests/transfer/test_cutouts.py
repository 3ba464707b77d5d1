"""Scenes of a user's cut-out images: colours, masks and boxes exact, no cut-out in both parts, mistakes in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from transfer import detect, scenes, segment
from transfer.cutouts import load_cutouts, read_cutout, resize_cutout
from transfer.own_data import detection, segmentation

COLOURS = {"disc": (255, 0, 0), "ring": (0, 255, 0), "bar": (0, 0, 255)}  # of the cut-outs of each class


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


def shape(kind: str, number: int) -> np.ndarray:
    """Return the pixels of an object, (60, 80) bool, which touches no border."""
    mask = np.zeros((60, 80), np.uint8)
    if kind == "bar":
        cv2.line(mask, (9 + number, 10), (68, 45 + number), 1, 9)
    else:
        cv2.circle(mask, (40, 30), 15 + number, 1, -1 if kind == "disc" else 6)
    return mask.astype(bool)


def write_cutout(path: Path, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Write an object with an alpha channel, on noise that must not be seen; as .jpg or .bmp on white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    pixels[mask] = colour
    if path.suffix in (".jpg", ".bmp"):
        pixels[~mask] = 255
        Image.fromarray(pixels).save(path)
    else:
        Image.fromarray(np.dstack([pixels, 255 * mask.astype(np.uint8)])).save(path, lossless=True)


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """Three classes of five cut-outs, each class of one colour."""
    for kind, colour in COLOURS.items():
        for number in range(5):
            suffix = (".png", ".webp", ".png" if kind == "ring" else ".bmp")[number % 3]  # a white hole would stay
            write_cutout(tmp_path / "toys" / kind / f"{number}{suffix}", shape(kind, number), colour)
    return tmp_path / "toys"


def command(toys: Path, *more: str) -> list[str]:
    out = toys.parent / "out"
    return [f"--from={toys}", f"--out={out}", "--train=6", "--val=4", "--size=64", "--seed=5", *more]


def test_pixels_boxes_and_masks_are_exact(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inside of its mask an object has its colour, in spite of resampling; outside the background is untouched."""
    assert scenes.main(command(toys)) == 0
    out = toys.parent / "out"
    assert f"next: python transfer/detect.py --ckpt CHECKPOINT --data {out}" in capsys.readouterr().out
    names = sorted(COLOURS)
    assert (out / "classes.txt").read_text().split() == ["background", *names]
    for split, count in (("train", 6), ("val", 4)):
        data = COCO(str(out / "annotations" / f"instances_{split}.json"))
        assert [c["name"] for c in data.loadCats(data.getCatIds())] == names
        assert len(data.getImgIds()) == count
        for number in data.getImgIds():
            name = data.loadImgs(number)[0]["file_name"]
            image = np.asarray(Image.open(out / "images" / split / name))
            semantic = np.asarray(Image.open(out / "masks" / split / name))
            wanted = scenes._background(np.random.default_rng((5, split == "val", number)), 64).copy()
            for annotation in data.loadAnns(data.getAnnIds(number)):
                mask = data.annToMask(annotation).astype(bool)
                wanted[mask] = COLOURS[names[annotation["category_id"] - 1]]
                assert (semantic[mask] == annotation["category_id"]).all()
                assert annotation["area"] == mask.sum() > 0
                assert cv2.boundingRect(mask.astype(np.uint8)) == tuple(annotation["bbox"])
            np.testing.assert_array_equal(image, wanted)


def test_the_same_seed_gives_the_same_scenes_and_is_not_written_again(toys: Path, tmp_path: Path) -> None:
    first = scenes.write_scenes(tmp_path / "a", 3, 2, 64, 1, cutouts=toys)
    second = scenes.write_scenes(tmp_path / "b", 3, 2, 64, 1, cutouts=toys)
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(files) == 2 * 5 + 5
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    before = (first / "scenes.json").stat().st_mtime_ns
    assert scenes.write_scenes(first, 3, 2, 64, 1, cutouts=toys) == first
    assert (first / "scenes.json").stat().st_mtime_ns == before
    (toys / "disc" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"name another folder with --out or remove it"):
        scenes.write_scenes(first, 3, 2, 64, 1, cutouts=toys)


def test_no_cutout_is_in_both_parts_not_even_a_copy(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        shutil.copyfile(toys / "disc" / "0.png", toys / "disc" / f"copy{i}.png")
    sets, _ = load_cutouts(toys, 0.4, 0)
    assert "4 copies of other cut-outs are left out" in capsys.readouterr().err
    content = {split: {path.read_bytes() for path in images.paths} for split, images in sets.items()}
    assert not content["train"] & content["val"]
    assert {split: np.bincount(images.labels).tolist() for split, images in sets.items()} == {
        "train": [3, 3, 3], "val": [2, 2, 2],
    }  # fmt: skip
    assert load_cutouts(toys, 0.4, 1)[0]["val"].names != sets["val"].names


def test_parts_that_are_given_are_kept(toys: Path) -> None:
    for kind in COLOURS:
        (toys / "val" / kind).mkdir(parents=True)
        (toys / kind / "0.png").rename(toys / "val" / kind / "0.png")
        (toys / "train").mkdir(exist_ok=True)
        (toys / kind).rename(toys / "train" / kind)
    sets, _ = load_cutouts(toys, 0.2, 0)
    assert (len(sets["train"]), len(sets["val"])) == (12, 3)
    assert {path.parents[1].name for path in sets["val"].paths} == {"val"}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".gif"])
def test_a_plain_background_is_removed_and_a_hole_stays(suffix: str, tmp_path: Path) -> None:
    """A JPEG blurs the edge; elsewhere the mask is exact. The inside of a ring is not connected with the border."""
    mask = shape("ring", 4)
    pixels = np.full((60, 80, 3), (250, 252, 249), np.uint8)
    pixels[mask] = (20, 120, 60)
    Image.fromarray(pixels).save(tmp_path / f"ring{suffix}")
    found = read_cutout(tmp_path / f"ring{suffix}")
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    filled = np.zeros((60, 80), np.uint8)
    cv2.circle(filled, (40, 30), 19, 1, -1)
    wanted = (filled.astype(bool) | mask)[top : top + height, left : left + width]
    if suffix != ".jpg":
        np.testing.assert_array_equal(found[:, :, 3] >= 128, wanted)
    assert abs(int((found[:, :, 3] >= 128).sum()) - int(wanted.sum())) < 0.15 * wanted.sum()


def test_a_thin_object_keeps_at_least_one_pixel() -> None:
    pole = np.zeros((400, 9, 4), np.uint8)
    pole[:, 4] = (10, 200, 30, 255)
    colours, mask = resize_cutout(pole, 20)
    assert mask.any()
    np.testing.assert_allclose(colours[mask], [[10, 200, 30]] * mask.sum(), atol=8)


def photo(path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path)


MISTAKES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "photo": (lambda t: photo(t / "bar/photo.jpg"), [], "photo.jpg: no alpha channel, and"),
    "empty": (lambda t: write_cutout(t / "bar/e.png", np.zeros((9, 9), bool), (0, 0, 0)), [], "e.png: no object"),
    "plain": (lambda t: Image.new("RGB", (9, 9)).save(t / "bar/black.png"), [], "black.png: no object: 0 pixels"),
    "broken": (lambda t: (t / "bar/b.png").write_bytes(b"no image"), [], "b.png: not an image that Pillow reads"),
    "class": (lambda t: (t / "empty").mkdir(), [], "empty: a class folder without images"),
    "flat": (lambda t: [shutil.rmtree(t / c) for c in COLOURS] + [photo(t / "a.png")], [], "without class folders"),
    "val": (lambda t: (t / "bar").rename(t / "train"), [], "has no val/ beside it"),
    "fraction": (lambda t: None, ["--val-fraction=0"], "--val-fraction 0: of 15 cut-outs, 0 would be in val"),
    "much": (lambda t: None, ["--val-fraction=0.99"], "would be in val"),
    "classes": (
        lambda t: shutil.copyfile(t / "bar/0.png", t / "disc/x.png"),
        [],
        "disc/x.png: the same file as",
    ),
    "folder": (lambda t: shutil.rmtree(t), [], "no such folder"),
}


@pytest.mark.parametrize(("spoil", "more", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(
    spoil: Callable[[Path], object], more: list[str], message: str, toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(toys)
    assert scenes.main(command(toys, *more)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scenes: error")]
    assert len(error) == 1
    assert message in error[0]
    assert not (toys.parent / "out").exists()


def test_a_file_in_both_parts_is_refused(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(toys, toys / "train")
    shutil.copytree(toys / "disc", toys / "val" / "disc")
    assert scenes.main(command(toys)) == 2
    assert "disc/0.png: the same file as" in capsys.readouterr().err


def test_a_whole_rectangle_is_told(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(np.dstack([noise, np.full((40, 40), 255, np.uint8)])).save(toys / "bar" / "window.png")
    load_cutouts(toys, 0.2, 0)
    assert "1 of 16 cut-outs are whole rectangles" in capsys.readouterr().err


def test_both_benchmarks_read_the_scenes(toys: Path) -> None:
    assert scenes.main(command(toys)) == 0
    out = toys.parent / "out"
    data = detection.load(detect.parser().parse([f"--data={out}", f"--out={toys.parent / 'runs'}"]))
    assert (data.classes, data.masks, data.images) == (sorted(COLOURS), True, (6, 4))
    given = [f"--{name}={out / name}" for name in ("images", "masks")] + [f"--classes={out / 'classes.txt'}"]
    masks = segmentation.load(segment.parser().parse([*given, f"--out={toys.parent / 'runs'}"]))
    assert (masks.classes, len(masks.train), len(masks.val)) == (["background", *sorted(COLOURS)], 6, 4)
    assert json.loads((out / "scenes.json").read_text())["parameters"]["val_fraction"] == 0.2
