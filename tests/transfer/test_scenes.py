"""Fashion Scenes: identical on every machine, exact masks, separate garments for train and test, read by detectron2."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from common.images import load_images
from transfer import scenes
from transfer.detection import pictures

ROOT = Path(__file__).parents[2]
FASHION = str(ROOT / "data")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_scenes(tmp_path_factory.mktemp("data") / "small", 12, 8, 64, 3, FASHION)


def test_the_classes_are_fashions() -> None:
    assert list(scenes.CLASSES) == torchvision.datasets.FashionMNIST.classes


def test_pixels_and_annotations_are_the_same_everywhere(small: Path, tmp_path: Path) -> None:
    """Written in another process, without OpenCV's vector instructions and threads, and compared with a stored hash."""
    code = "import cv2; cv2.setUseOptimized(False); cv2.setNumThreads(1); from transfer.scenes import main; main()"
    other = tmp_path / "other"
    options = f"--out {other} --train 12 --val 8 --size 64 --seed 3 --fashion-root {FASHION}".split()
    subprocess.run([sys.executable, "-c", code, *options], check=True, cwd=ROOT, timeout=120)
    names = sorted(p.relative_to(small) for p in small.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert len(names) == 2 * (12 + 8) + 2 + 2
    for name in names:
        assert (small / name).read_bytes() == (other / name).read_bytes(), name
    hashes = json.loads((small / "scenes.json").read_text())["sha256"]
    assert {split: digest[:16] for split, digest in hashes.items()} == GOLDEN


GOLDEN = {"train": "cdcef5ca02ac71e6", "val": "92f6640b41f6d370"}


def test_a_scene_does_not_depend_on_how_many_there_are(small: Path, tmp_path: Path) -> None:
    fewer = scenes.write_scenes(tmp_path / "fewer", 2, 1, 64, 3, FASHION)
    name = Path("images/train/000001.png")
    assert (small / name).read_bytes() == (fewer / name).read_bytes()
    other = scenes.write_scenes(tmp_path / "other", 2, 1, 64, 4, FASHION)
    assert (small / name).read_bytes() != (other / name).read_bytes()
    assert (small / name).read_bytes() != (small / "images/val/000001.png").read_bytes()


def test_annotations_agree_with_the_masks(small: Path) -> None:
    """COCO's reader: classes, areas, boxes and masks agree with the semantic mask; no pixel has two garments."""
    for split, count in (("train", 12), ("val", 8)):
        data = COCO(str(small / "annotations" / f"instances_{split}.json"))
        assert [c["name"] for c in data.loadCats(data.getCatIds())] == list(scenes.CLASSES)
        assert len(data.getImgIds()) == count
        for number in data.getImgIds():
            name = data.loadImgs(number)[0]["file_name"]
            wanted = cv2.imread(str(small / "masks" / split / name), cv2.IMREAD_UNCHANGED)
            image = cv2.imread(str(small / "images" / split / name))
            assert wanted.dtype == np.uint8
            assert wanted.shape == image.shape[:2] == (64, 64)
            found, covered = np.zeros((64, 64), int), np.zeros((64, 64), int)
            annotations = data.loadAnns(data.getAnnIds(number))
            assert 2 <= len(annotations) <= 5
            for annotation in annotations:
                mask = data.annToMask(annotation).astype(bool)
                found[mask] = annotation["category_id"]
                covered += mask
                assert annotation["area"] == mask.sum() > 0
                assert cv2.boundingRect(mask.astype(np.uint8)) == tuple(annotation["bbox"])
            assert covered.max() == 1
            np.testing.assert_array_equal(found, wanted)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40), number=st.integers(0, 999_999), size=st.integers(32, 160))
def test_garments_stay_visible(seed: int, number: int, size: int) -> None:
    scene = scenes.make_scene(IMAGES, "val", number, size, seed)
    assert 2 <= len(scene.garments) <= 5
    assert scene.image.shape == (size, size, 3)
    for garment in scene.garments:
        assert garment.visible.sum() >= 0.6 * garment.area > 0


IMAGES = load_images(["fashion:test"], FASHION)


def _idx(path: Path, label: int) -> None:
    """Write Fashion-MNIST's files with eight garments of one class."""
    name = "train" if label == 0 else "t10k"
    pixels = np.random.default_rng(label).integers(100, 255, (8, 28, 28), dtype=np.uint8)
    header = struct.pack(">HBB", 0, 8, 3) + struct.pack(">3I", 8, 28, 28)
    (path / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    header = struct.pack(">HBB", 0, 8, 1) + struct.pack(">I", 8)
    (path / f"{name}-labels-idx1-ubyte").write_bytes(header + bytes([label] * 8))


def test_train_and_val_show_different_garments(tmp_path: Path) -> None:
    """With a Fashion-MNIST whose training set holds only class 0 and whose test set only class 1."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for label in (0, 1):
        _idx(raw, label)
    out = scenes.write_scenes(tmp_path / "out", 3, 3, 64, 0, str(tmp_path))
    for split, label in (("train", 1), ("val", 2)):
        found = json.loads((out / "annotations" / f"instances_{split}.json").read_text())["annotations"]
        assert {annotation["category_id"] for annotation in found} == {label}


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    """Two processes ask for it at the same time; a finished data set is not written again."""
    (tmp_path / "FashionMNIST").symlink_to(ROOT / "data" / "FashionMNIST")
    code = f"from transfer.scenes import *; print(ensure_scenes(Path({str(tmp_path)!r}), 6, 3, 48))"
    asked = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    folders = {Path(process.communicate(timeout=120)[0].strip()) for process in asked}
    assert all(process.returncode == 0 for process in asked)
    (folder,) = folders
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]
    before = (folder / "scenes.json").stat().st_mtime_ns
    assert scenes.ensure_scenes(tmp_path, 6, 3, 48) == folder
    assert (folder / "scenes.json").stat().st_mtime_ns == before


def test_the_palette_is_that_of_matplotlib() -> None:
    colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    np.testing.assert_array_equal(scenes.PALETTE, np.round(255 * np.array(colours)))


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "contact_sheet", broken)
    with pytest.raises(KeyboardInterrupt):
        scenes.write_scenes(tmp_path / "out", 2, 1, 48, 0, FASHION)
    assert list(tmp_path.iterdir()) == []


def test_detectron2_reads_it(small: Path) -> None:
    """With its own loader; in another process, because mmseg and detectron2 cannot share one."""
    code = f"""
import json
from detectron2.data.datasets import load_coco_json
from detectron2.data import detection_utils, MetadataCatalog
from transfer.scenes import CLASSES
rows = load_coco_json({str(small / "annotations/instances_val.json")!r}, {str(small / "images/val")!r}, "scenes")
assert MetadataCatalog.get("scenes").thing_classes == list(CLASSES)
for row in rows:
    image = detection_utils.read_image(row["file_name"], "RGB")
    instances = detection_utils.annotations_to_instances(row["annotations"], image.shape[:2], mask_format="bitmask")
    boxes = instances.gt_masks.get_bounding_boxes().tensor
    assert (boxes == instances.gt_boxes.tensor).all()
print(len(rows))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--size=8"], "size=8: must be between 32 and 4096"),
        (["--train=0"], "train=0: must be between 1"),
        (["--seed=-1"], "seed=-1: must be between 0"),
        (["--fashion-root=/no/such"], "no Fashion-MNIST in /no/such"),
        ([f"--out={ROOT}"], "holds something else"),
    ],
)
def test_a_mistake_is_one_line(
    wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scenes.main([f"--out={tmp_path / 'out'}", f"--fashion-root={FASHION}", "--train=2", "--val=2", *wrong]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_another_data_set_is_not_overwritten(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scenes.main([f"--out={small}", "--train=12", "--val=8", "--size=64", "--seed=4"]) == 2
    assert "'seed': 3" in capsys.readouterr().err
