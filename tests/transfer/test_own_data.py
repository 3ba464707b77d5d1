"""A user's detection data set: the layouts that are found, what is read from them, twins, overlaps, mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from tests.transfer import own_sets
from transfer.detect import parser
from transfer.detection.evaluation import coco_metrics, load_coco
from transfer.own_data import detection
from transfer.own_data.detection import DetectionData
from transfer.own_data.detection_task import COCO_IMAGES, EPOCHS, write_task
from transfer.own_data.options import epochs_for, names_detection
from transfer.own_data.overlap import fingerprint

LAYOUTS: dict[str, tuple[Callable[[Path], Any], tuple[int, int]]] = {
    "coco": (own_sets.write_coco, (6, 4)),
    "roboflow": (own_sets.write_roboflow, (6, 4)),
    "cvat": (own_sets.write_cvat, (5, 1)),
    "label studio": (own_sets.write_label_studio, (5, 1)),
    "yolo": (own_sets.write_yolo, (6, 4)),
    "yolo by part": (lambda root: own_sets.write_yolo(root, per_split=False), (6, 4)),
    "voc": (own_sets.write_voc, (6, 4)),
    "voc beside the images": (lambda root: own_sets.write_voc(root, beside=True), (6, 4)),
}


def load(root: Path, *options: str) -> DetectionData:
    return detection.load(parser().parse(["--data", str(root), "--out", str(root.parent / "out"), *options]))


def made(tmp_path: Path, write: Callable[[Path], Any], name: str = "pets") -> Path:
    root = tmp_path / name
    root.mkdir()
    write(root)
    return root


def refused(root: Path, *options: str) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  the tests look at the message
        load(root, *options)
    return str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_tools_are_found_and_read(layout: str, tmp_path: Path) -> None:
    write, counts = LAYOUTS[layout]
    data = load(made(tmp_path, write))
    assert data.classes == [*own_sets.CLASSES]
    assert data.images == counts
    assert not data.masks
    assert data.sides == (48, 64)
    for file, images in (data.files[:2], data.files[2:]):
        content = json.loads(Path(file).read_text())
        assert all((Path(images) / row["file_name"]).is_file() for row in content["images"])
        assert all(len(row["bbox"]) == 4 for row in content["annotations"])


def as_named(content: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return (image, class, box, crowd) of each object, sorted."""
    images = {row["id"]: Path(row["file_name"]).stem for row in content["images"]}
    names = {row["id"]: row["name"] for row in content["categories"]}
    return sorted(
        (images[row["image_id"]], names[row["category_id"]], row["bbox"], row["iscrowd"])
        for row in content["annotations"]
    )


def figures(file: str) -> dict[str, float]:
    """Return the metrics of the same detections, by image and class, on an annotation file."""
    content = json.loads(Path(file).read_text())
    images = {Path(row["file_name"]).stem: row["id"] for row in content["images"]}
    names = {row["name"]: row["id"] for row in content["categories"]}
    rng = np.random.default_rng(1)
    found = []
    for image, name, (x, y, w, h), _ in as_named(content):
        for score in rng.uniform(0, 1, 3):
            box = [x + rng.integers(-3, 4), y + rng.integers(-3, 4), w + rng.integers(-3, 4), h + rng.integers(-3, 4)]
            found.append({"image_id": images[image], "category_id": names[name], "bbox": box, "score": score})
    return coco_metrics(load_coco(content), found, "bbox")


def test_yolo_and_voc_twins_have_the_same_ap(tmp_path: Path) -> None:
    coco = load(made(tmp_path, own_sets.write_coco, "coco"))
    plain = load(made(tmp_path, lambda root: own_sets.write_coco(root, crowds=False), "plain"))
    yolo = load(made(tmp_path, own_sets.write_yolo, "yolo"))
    voc = load(made(tmp_path, own_sets.write_voc, "voc"))
    for at in (0, 2):  # train, val
        expected, without = figures(coco.files[at]), figures(plain.files[at])
        assert 5 < expected["AP"] < 95, "neither nothing nor everything is found"
        assert expected != without, "crowds count"
        np.testing.assert_equal(figures(voc.files[at]), expected)
        np.testing.assert_equal(figures(yolo.files[at]), without)
        a, b, c = (json.loads(Path(data.files[at]).read_text()) for data in (coco, voc, yolo))
        assert as_named(a) == as_named(b)
        assert as_named(own_sets.without_crowds(a)) == as_named(c)
        assert len(a["images"]) == len(b["images"]) == len(c["images"]), "images without objects are tested on"


def test_coordinates_counted_from_0_are_noticed(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        own_sets.write_voc(root, counted_from=0)
        path = next(path for path in (root / "Annotations").iterdir() if "<xmin>" in path.read_text())
        text = path.read_text()
        left = text.partition("<xmin>")[2].partition("<")[0]
        path.write_text(text.replace(f"<xmin>{left}<", "<xmin>0<", 1))

    data = load(made(tmp_path, write))
    assert any("counted from 0" in note for note in data.notes)
    right = load(made(tmp_path, own_sets.write_voc, "right"))
    boxes = [as_named(json.loads(Path(d.files[2]).read_text())) for d in (data, right)]
    assert boxes[0] == boxes[1]


def test_masks_are_read_from_the_file(tmp_path: Path) -> None:
    root = made(tmp_path, lambda root: own_sets.write_coco(root, masks=True))
    assert load(root).masks
    content = json.loads((root / "train.json").read_text())
    rows = content["annotations"]
    x, y, w, h = rows[0]["bbox"]
    for row in rows:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (root / "train.json").write_text(json.dumps(content))
    assert load(root).masks, "only those of train are rectangles"
    shutil.copytree(root, tmp_path / "boxes")
    val = json.loads((root / "val.json").read_text())
    for row in val["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y + h, x, y, x + w, y, x + w, y + h]]
    (root / "val.json").write_text(json.dumps(val))
    data = load(root)
    assert not data.masks
    assert "rectangles" in data.notes[0]
    del rows[0]["segmentation"]
    (tmp_path / "boxes" / "train.json").write_text(json.dumps(content))
    data = load(tmp_path / "boxes")
    assert not data.masks
    assert "have no mask: boxes only" in data.notes[0]


def test_the_identity_is_of_the_content_not_the_path(tmp_path: Path) -> None:
    for name, write in (("coco", own_sets.write_coco), ("voc", own_sets.write_voc)):
        root = made(tmp_path, write, name)
        first = load(root).identity
        root.rename(tmp_path / f"moved-{name}")
        root = tmp_path / f"moved-{name}"
        assert load(root).identity == first
        path = next(root.rglob("val001.png"))
        cv2.imwrite(str(path), cv2.imread(str(path)) // 2)
        assert load(root).identity != first


def test_four_paths_are_as_good_as_a_folder(tmp_path: Path) -> None:
    root = made(tmp_path, own_sets.write_coco)
    given = ["--train-json", root / "train.json", "--train-images", root / "images", "--val-json", root / "val.json"]
    options = parser().parse([*map(str, given), "--val-images", str(root / "images")])
    assert names_detection(options)
    assert detection.load(options).identity == load(root).identity
    with pytest.raises(ValueError, match="--val-images missing: train and val each need"):
        names_detection(parser().parse([*map(str, given)]))
    with pytest.raises(ValueError, match="--data and --train-json"):
        names_detection(parser().parse(["--data", str(root), *map(str, given)]))
    assert not names_detection(parser().parse(["--task", "fashion-fpn"]))


def test_a_data_set_of_one_part_is_split_by_a_seed(tmp_path: Path) -> None:
    root = made(tmp_path, lambda root: own_sets.write_coco(root, counts={"train": 30, "val": 1}))
    (root / "val.json").unlink()

    def tested(*options: str) -> set[str]:
        data = load(root, *options)
        assert "one part" in data.notes[0]
        contents = [json.loads(Path(file).read_text()) for file in data.files[::2]]
        names = [{row["file_name"] for row in content["images"]} for content in contents]
        assert not names[0] & names[1]
        assert sum(map(len, names)) == 30
        for content in contents:
            ids = {row["id"] for row in content["images"]}
            assert {row["image_id"] for row in content["annotations"]} <= ids
        return names[1]

    first = tested()
    assert len(first) == 6
    assert tested() == first
    assert tested("--split-seed", "1") != first
    assert len(tested("--val-fraction", "0.5")) == 15
    assert "would be tested on" in refused(root, "--val-fraction", "0.001")


@pytest.mark.fault("figures that mean nothing", "detect", "test images among the training images of one's own data")
@pytest.mark.parametrize("quality", [None, 60])
def test_test_images_among_the_training_images_are_refused(quality: int | None, tmp_path: Path) -> None:
    root = made(tmp_path, own_sets.write_coco)
    assert not load(root).overlap
    own_sets.copy_into_train(root, quality)
    said = refused(root)
    kind = "1 have the same bytes" if quality is None else "1 look the same"
    assert f"1 of 4 test images are training images ({kind})" in said
    assert "val000.png" in said
    assert "again" in said
    assert "--allow-overlap" in said
    assert "1 of 4 test images" in load(root, "--allow-overlap").overlap


def test_images_that_differ_do_not_look_the_same(tmp_path: Path) -> None:
    """Neither flat ones, whose hashes are all alike, nor one that is moved by a few pixels or mirrored."""
    flat, other = tmp_path / "flat.png", tmp_path / "other.png"
    for path, value in ((flat, 10), (other, 200)):
        cv2.imwrite(str(path), np.full((40, 40, 3), value, np.uint8))
    assert fingerprint(flat)[1] == fingerprint(other)[1] == ""
    root = made(tmp_path, lambda root: own_sets.write_coco(root, counts={"train": 60, "val": 30}))
    assert not load(root).overlap


def test_a_task_is_set_by_the_data(tmp_path: Path) -> None:
    data = load(made(tmp_path, lambda root: own_sets.write_coco(root, masks=True)))
    path, said = write_task(data, "fpn", None, "detectron2")
    settings = yaml.safe_load(path.read_text())
    assert "5 training images with objects" in " ".join(said)
    assert settings["MODEL"]["MASK_ON"] is True
    assert settings["INPUT"]["MIN_SIZE_TEST"] == 256
    assert settings["SOLVER"]["MAX_ITER"] == round(100 * 5 / 16)
    assert yaml.safe_load(write_task(data, "fpn", 32, "detectron2")[0].read_text())["SOLVER"]["MAX_ITER"] == 10
    retinanet = yaml.safe_load(write_task(data, "retinanet", None, "detectron2")[0].read_text())
    assert retinanet["MODEL"]["MASK_ON"] is False
    assert retinanet["MODEL"]["RETINANET"]["NUM_CLASSES"] == 3
    with pytest.raises(ValueError, match="--epochs 0: must be above 0"):
        write_task(data, "fpn", 0, "detectron2")
    assert epochs_for(118_287, COCO_IMAGES, EPOCHS, None) == 12
    assert epochs_for(10, COCO_IMAGES, EPOCHS, None) == 100
    assert 20 < epochs_for(16_551, COCO_IMAGES, EPOCHS, None) < 40, "VOC's 24,000 iterations are 23 epochs"


def _without(root: Path, name: str) -> None:
    (root / name).unlink()


@pytest.mark.fault("a newcomer's mistakes", "detect", "a data set of one's own that is incomplete or malformed")
@pytest.mark.parametrize(
    ("write", "spoil", "options", "expected"),
    [
        (own_sets.write_coco, lambda r: shutil.rmtree(r), [], "is no folder; it has to hold one of these: COCO:"),
        (own_sets.write_coco, lambda r: [_without(r, "train.json"), _without(r, "val.json")], [], "no annotations in"),
        (own_sets.write_coco, lambda r: _without(r / "images", "val001.png"), [], "val001.png: No such file"),
        (own_sets.write_coco, lambda r: (r / "images/val001.png").write_bytes(b""), [], "val001.png: empty file"),
        (own_sets.write_coco, lambda r: (r / "val.json").write_text("{"), [], "not JSON in UTF-8"),
        (own_sets.write_coco, lambda r: None, ["--classes", "x.txt"], "--classes is for YOLO's and VOC's"),
        (own_sets.write_yolo, lambda r: _without(r, "data.yaml"), [], "no data.yaml (names: [...]) or classes.txt"),
        (own_sets.write_yolo, lambda r: (r / "data.yaml").write_text("names: {1: a}"), [], "number them from 0"),
        (own_sets.write_yolo, lambda r: (r / "data.yaml").write_text("names: [a]"), [], "there are 1, from 0"),
        (own_sets.write_yolo, lambda r: (r / "labels/val/x.txt").write_text("0 .5 .5 .1 .1"), [], "have no image"),
        (own_sets.write_yolo, lambda r: (r / "labels/val/val000.txt").write_text("0 32 20 9 9"), [], "fractions"),
        (own_sets.write_yolo, lambda r: (r / "labels/val/val000.txt").write_text("0 .5 .5 .1 .1 .9"), [], "a fifth"),
        (own_sets.write_yolo, lambda r: (r / "labels/val/val000.txt").write_text("a .5 .5 .1 .1"), [], "class number"),
        (own_sets.write_voc, lambda r: _without(r / "JPEGImages", "val000.png"), [], "have no image of their name"),
        (own_sets.write_voc, lambda r: (r / "Annotations/val000.xml").write_text("<a>"), [], "not xml"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(write: Any, spoil: Any, options: list[str], expected: str, tmp_path: Path) -> None:
    root = made(tmp_path, write)
    spoil(root)
    said = refused(root, *options)
    assert expected in said
    assert "\n" not in said


def test_categories_with_other_numbers_are_renumbered_and_other_names_refused(tmp_path: Path) -> None:
    root = made(tmp_path, own_sets.write_coco)
    before = as_named(json.loads((root / "val.json").read_text()))
    part = json.loads((root / "val.json").read_text())
    shift = {old: old + 1000 for old in own_sets.IDS}
    for row in part["categories"]:
        row["id"] = shift[row["id"]]
    for row in part["annotations"]:
        row["category_id"] = shift[row["category_id"]]
    (root / "val.json").write_text(json.dumps(part))
    data = load(root)
    assert "renumbered" in data.notes[0]
    content = json.loads(Path(data.files[2]).read_text())
    assert as_named(content) == before
    assert {row["id"] for row in content["categories"]} == {*own_sets.IDS}
    part["categories"][0]["name"] = "elk"
    (root / "val.json").write_text(json.dumps(part))
    assert "different categories: 'ant' only in train, 'elk' only in val" in refused(root)
