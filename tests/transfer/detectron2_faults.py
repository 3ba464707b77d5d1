"""Faults of detection data through the command: one line before anything is trained, or read as the format says.

Run by test_detect.py in a process of its own. Each fault is made in a whole data set in its real tree.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.transfer.detection_data import cityscapes, coco, voc
from transfer.detect import main

NEEDS_CITYSCAPES = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("cityscapesscripts", "shapely", "pyquaternion"))), reason="not installed"
)
SMALL = [
    "INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MIN_SIZE_TEST", "48", "SOLVER.MAX_ITER", "1", "SOLVER.WARMUP_ITERS", "1",
    "TEST.PRECISE_BN.NUM_ITER", "1", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "40", "MODEL.RPN.PRE_NMS_TOPK_TEST", "20",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "5", "TEST.DETECTIONS_PER_IMAGE", "5",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "64",
]  # fmt: skip
Content = dict[str, Any]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for what is cached below runs."""
    monkeypatch.chdir(tmp_path)


def detect(root: Path, task: str, *more: str) -> int:
    given = ["--ckpt", "random:resnet18", "--task", task, "--data-root", str(root), "--device", "cpu"]
    return main([*given, *more, "--out", "out", "--records", "records", *SMALL])


def refused(root: Path, task: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the command as if nothing were wrong with the data; it must say what is, in one line, and write nothing."""
    assert detect(root, task) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("detect: error: ")]
    assert re.search(message, line), line
    assert str(root) in line
    assert not Path("out").exists()
    assert not Path("records").exists()


def edit(file: Path, change: Callable[[Content], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def first(**values: Any) -> Callable[[Content], object]:
    return lambda content: content["annotations"][0].update(values)


def each(**values: Any) -> Callable[[Content], object]:
    return lambda content: [row.update(values) for row in content["annotations"]]


def without(key: str) -> Callable[[Content], object]:
    return lambda content: [row.pop(key) for row in content["annotations"]]


def own_categories(content: Content) -> None:
    content["categories"] = [{"id": i, "name": name} for i, name in ((1, "nut"), (2, "bolt"), (3, "screw"))]
    each(category_id=1)(content)


def encode(content: Content) -> None:
    first(segmentation={"size": [48, 64], "counts": [0, 10 * 48, 54 * 48]})(content)


SIDE = [2, 2, 20, 2, 20, 20]
THIRD, FIGURES, NOTHING = "third-party exceptions", "detection figures", "figures that mean nothing"
# Kind, file of train or val, what is changed, and what the line says.
COCO: dict[str, tuple[str, str, Callable[[Content], object], str]] = {
    "own categories under COCO's file names": (THIRD, "train", own_categories, "3 categories are not the 80 .*unknown: "
                                               "1 'nut'.*missing: 1 'person'.*put the data set's own file there"),
    "a category renamed": (FIGURES, "val", lambda c: c["categories"][4].update(name="plane"), "unknown: 5 'plane'"),
    "an unknown category_id": (THIRD, "train", first(category_id=83), "annotation 1 .*category_id.*add the category"),
    "an unknown image_id": (THIRD, "train", first(image_id=7), "annotation 1 .*image_id.*add the image, or remove it"),
    "annotation ids used twice": (THIRD, "train", each(id=5), "8 annotations have the id 5: each needs its own"),
    "image ids used twice": (FIGURES, "val", lambda c: c["images"][1].update(id=200), "2 images have the id 200"),
    "ids that are texts": (FIGURES, "val", lambda c: c["images"][0].update(id="200"), "has the id '200'.*an integer"),
    "RLE where polygons are wanted": (THIRD, "train", encode, "annotation 1 .*has RLE.*add INPUT.MASK_FORMAT bitmask"),
    "RLE of another size": (THIRD, "val", first(segmentation={"size": [9, 9], "counts": [81]}), "not cover its image"),
    "no segmentation": (THIRD, "train", without("segmentation"), "has no segmentation.*set MODEL.MASK_ON False"),
    "a polygon of two points": (FIGURES, "train", first(segmentation=[[1, 2, 3, 4]]), "fewer than 6 or an odd number"),
    "a polygon of seven numbers": (FIGURES, "val", first(segmentation=[[*SIDE, 5]]), "fewer than 6 or an odd number"),
    "a polygon of texts": (THIRD, "train", first(segmentation=[[*map(str, SIDE)]]), "other than finite numbers"),
    "a polygon a million pixels away": (FIGURES, "val", first(segmentation=[[*SIDE, 1e6, 1e6]]), "beyond its image"),
    "a mask without a pixel": (FIGURES, "val", first(segmentation=[[5, 5, 5, 5, 5, 5]]), "covers no pixel"),
    "a bbox of three numbers": (THIRD, "train", first(bbox=[1, 2, 3]), "no bbox of four finite numbers"),
    "a bbox with NaN": (FIGURES, "train", first(bbox=[1, 2, float("nan"), 4]), "no bbox of four finite numbers"),
    "an empty bbox": (THIRD, "train", first(bbox=[]), "no bbox of four finite numbers"),
    "a negative width": (FIGURES, "train", first(bbox=[30, 2, -9, 4]), "negative width or height"),
    "a bbox without height": (FIGURES, "val", first(bbox=[3, 2, 9, 0]), "without width or height"),
    "boxes of corners": (FIGURES, "train", first(bbox=[40, 20, 60, 40]), "beyond its image.*not .left, top, right"),
    "an area of 0": (FIGURES, "val", each(area=0), "area 0, so that it would count as small"),
    "an area that is not the mask's": (FIGURES, "val", each(area=1), "is not that of its mask"),
    "an area above the box's": (FIGURES, "val", each(area=1e5), "larger than its bbox"),
    "an area that is a text": (FIGURES, "val", each(area="12"), "no number of pixels.*: remove `area`"),
    "iscrowd 2": (FIGURES, "val", first(iscrowd=2), "iscrowd other than 0 and 1"),
    "ignore 1": (THIRD, "train", first(ignore=1), "write iscrowd 1, or remove it"),
    "a test set of crowds": (NOTHING, "val", each(iscrowd=1), "no object to find: AP would mean nothing"),
    "a test set without annotations": (NOTHING, "val", lambda c: c.update(annotations=[]), "no object to find"),
    "a training set without boxes": (NOTHING, "train", lambda c: c.update(annotations=[]), "no object to train on"),
    "another width in the file": (FIGURES, "train", lambda c: c["images"][0].update(width=63), "64 x 48 pixels and its "
                                  "entry says 63 x 48: correct its width"),
    "an image that is not there": (THIRD, "val", lambda c: c["images"][0].update(file_name="x.jpg"), "x.jpg: No such"),
    "a list of annotations alone": (THIRD, "train", lambda c: c.pop("images"), 'no list of objects under "images"'),
}  # fmt: skip


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [pytest.param(*case, id=name, marks=pytest.mark.fault(kind, "detect", f"COCO: {name}"))
     for name, (kind, *case) in COCO.items()],
)  # fmt: skip
def test_a_wrong_coco_file_is_one_line(
    split: str, change: Callable[[Content], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "data")
    edit(root / "coco" / "annotations" / f"instances_{split}2017.json", change)
    refused(root, "coco-fpn-1x", message, capsys)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def turn(orientation: int) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(path) as image:
            image.save(path, exif=exif)

    return write


IMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "EXIF orientation 6": (FIGURES, turn(6), "jpg: its EXIF orientation 6 turns the image"),
    "EXIF orientation 3, which keeps the size": (FIGURES, turn(3), "jpg: its EXIF orientation 3 turns the image"),
    "an image of no bytes": (THIRD, lambda path: path.write_bytes(b""), r"jpg: an empty file \(0 bytes\)"),
    "an image cut off": (THIRD, cut, "jpg: image file is truncated"),
    "a text named .jpg": (THIRD, lambda path: path.write_text("404"), "cannot identify image file"),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.fault(kind, "detect", name))
        for name, (kind, *case) in IMAGES.items()
    ],
)
def test_a_wrong_image_is_one_line(
    split: str, change: Callable[[Path], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "data")
    change(sorted((root / "coco" / f"{split}2017").iterdir())[1])
    refused(root, "coco-fpn-1x", message, capsys)


@pytest.mark.fault(THIRD, "detect", "an annotation file cut off")
def test_a_file_that_is_not_json_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data")
    cut(root / "coco" / "annotations" / "instances_train2017.json")
    refused(root, "coco-fpn-1x", r"instances_train2017.json: not JSON in UTF-8 \(", capsys)


@pytest.mark.fault(THIRD, "detect", "keypoints: 16 points, wrong counts, unknown visibility")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (each(keypoints=[1, 2, 2] * 16), "has no keypoints of 17 times"),
        (each(keypoints=[1, 2, 3] * 17), "has no keypoints of 17 times"),
        (each(num_keypoints=3), "num_keypoints that is not the number.*remove num_keypoints"),
        (each(keypoints=[0, 0, 0] * 17, num_keypoints=0), "no object to find"),
    ],
)
def test_wrong_keypoints_are_one_line(
    change: Callable[[Content], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "data", keypoints=True)
    edit(root / "coco" / "annotations" / "person_keypoints_val2017.json", change)
    refused(root, "coco-keypoint-2x", message, capsys)


@pytest.mark.fault(FIGURES, "detect", "LVIS: no lists of classes, no frequency, too few categories")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [row.pop("neg_category_ids") for row in c["images"]], "has no neg_category_ids"),
        (lambda c: c["categories"][9].pop("frequency"), "categories 10 has no frequency"),
        (lambda c: c["categories"].pop(), "1202 categories are not the 1203"),
    ],
)
def test_a_wrong_lvis_file_is_one_line(
    change: Callable[[Content], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "data", lvis=True)
    edit(root / "lvis" / "lvis_v1_val.json", change)
    refused(root, "lvis-v1-fpn", message, capsys)


XML, LIST = "VOC2007/Annotations/test000000.xml", "VOC2007/ImageSets/Main/test.txt"


def put(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def twice(text: str) -> str:
    entry = text[text.index("<object>") : text.index("</object>") + len("</object>")]
    return text.replace(entry, entry + entry)


VOC: dict[str, tuple[str, str, Callable[[str], str], str]] = {
    "a class that VOC does not have": (THIRD, XML, put("<name>", "<name>x"), "none of the classes aeroplane"),
    "xml cut off": (THIRD, XML, lambda text: text[:-9], "not xml"),
    "a coordinate that is no number": (THIRD, XML, put("<xmin>", "<xmin>a"), "bndbox.xmin 'a"),
    "no bndbox": (THIRD, XML, put("bndbox", "box"), "bndbox.xmin None"),
    "corners in the wrong order": (FIGURES, XML, put("<xmax>", "<xmax>-"), "not left, top, right, bottom"),
    "a box beyond the image": (FIGURES, XML, put("<ymax>", "<ymax>1"), "reaches beyond the 64 x 48 pixels"),
    "difficult that is a word": (THIRD, XML, put("<difficult>0", "<difficult>no"), "write 0 or 1"),
    "another size": (THIRD, XML, put("<width>64", "<width>65"), "64 x 48 pixels, not 65 x 48"),
    "an object annotated twice": (FIGURES, XML, twice, "the class and the box of another.*remove them"),
    "a name listed twice": (FIGURES, LIST, put("test000001", "test000000"), "test000000 is listed 2 times"),
    "a list of a class": (THIRD, LIST, put("\n", " 1\n"), "line 1, 'test000000 1': write one name"),
    "a name without xml": (THIRD, LIST, put("test000001", "x"), "1 of 2 names have no file.*Annotations/x.xml"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [pytest.param(*case, id=name, marks=pytest.mark.fault(kind, "detect", f"VOC: {name}"))
     for name, (kind, *case) in VOC.items()],
)  # fmt: skip
def test_a_wrong_voc_file_is_one_line(
    file: str, change: Callable[[str], str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = voc(tmp_path / "data")
    before = (root / file).read_text()
    assert change(before) != before
    (root / file).write_text(change(before))
    refused(root, "voc-c4-24k", message, capsys)


def rewrite(root: Path, pattern: str, change: Callable[[str], str]) -> None:
    for file in root.glob(pattern):
        file.write_bytes(change(file.read_text()).encode())


@pytest.mark.fault(NOTHING, "detect", "VOC: all test objects are difficult")
def test_a_voc_test_set_of_difficult_objects_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = voc(tmp_path / "data")
    rewrite(root, "VOC2007/Annotations/test*.xml", lambda t: t.replace("<difficult>0", "<difficult>1"))
    refused(root, "voc-c4-24k", "no object to find that is not difficult", capsys)


@pytest.mark.fault(THIRD, "detect", "VOC: no difficult, truncated, pose and size, boxes with fractions")
@pytest.mark.fault(THIRD, "detect", "VOC: lists with CRLF, blanks and blank lines, or of one name")
def test_voc_is_read_as_its_format_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the check through training to AP."""
    root = voc(tmp_path / "data")
    optional = "<(difficult|truncated|pose|size)>.*?</\\1>"
    rewrite(root, "VOC*/Annotations/*.xml", lambda t: re.sub(optional, "", t).replace("</xmax>", ".0</xmax>"))
    rewrite(root, "VOC2007/ImageSets/Main/*.txt", lambda t: t.replace("\n", " \r\n\r\n"))
    rewrite(root, "VOC2012/ImageSets/Main/*.txt", lambda t: t.splitlines()[0])
    assert detect(root, "voc-c4-24k") == 0
    assert "voc_2012_trainval: 1 images, 2 objects" in capsys.readouterr().out
    (record,) = Path("records").rglob("*.json")
    content = json.loads(record.read_text())
    assert content["environment"]["data_check"] == "passed"
    assert "bbox/AP-boat" not in content["metrics"], "no test image shows a boat"


@pytest.mark.fault(FIGURES, "detect", "COCO: no area: computed from the masks, and said")
@pytest.mark.fault(FIGURES, "detect", "COCO: no iscrowd, an annotation id of 0")
def test_coco_is_read_as_its_format_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data")
    file = root / "coco" / "annotations" / "instances_val2017.json"
    edit(file, without("area"))
    edit(file, without("iscrowd"))
    edit(file, first(id=0))
    assert detect(root, "coco-fpn-1x", "--check-data") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "coco_2017_val: 2 images, 4 objects, AP 100 with perfect detections; 4 annotations have no area, computed " \
        "from their masks" in line  # fmt: skip
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["runs"], "the cache alone is written"
    assert [path.name for path in Path("runs").iterdir()] == ["checks"]


@pytest.mark.parametrize(
    ("task", "make"),
    [
        ("coco-c4-1x", coco),
        ("coco-retinanet-1x", coco),
        ("voc-c4-24k", voc),
        ("lvis-v1-fpn", lambda root: coco(root, lvis=True)),
        ("coco-keypoint-2x", lambda root: coco(root, keypoints=True)),
        pytest.param("cityscapes-instance", cityscapes, marks=NEEDS_CITYSCAPES),
    ],
)
def test_sound_data_pass_and_a_second_check_opens_no_file(
    task: str, make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "data")
    assert detect(root, task, "--check-data") == 0
    said = capsys.readouterr()
    assert re.fullmatch(rf"{task}: data check passed in [\d.]+ s: .* AP 100 with perfect detections.*\n", said.out)
    assert not said.err
    assert detect(root, task, "--check-data") == 0
    assert "images (unchanged since an earlier check)" in capsys.readouterr().out


CITY = "cityscapes/gtFine/val/ulm/ulm_000000_000019_gtFine_instanceIds.png"
CITY_TRAIN = CITY.replace("val", "train").replace("instanceIds.png", "polygons.json")


@NEEDS_CITYSCAPES
@pytest.mark.fault(
    THIRD, "detect", "Cityscapes: an annotation missing, an unknown label, a mask of 8 bits, a polygon of 2 points"
)
@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CITY_TRAIN, Path.unlink, "missing, with 1 files of 2"),
        (CITY, lambda path: Image.new("L", (64, 48)).save(path), "mode L: instance ids have 16 bits"),
        (CITY, lambda path: Image.new("I;16", (64, 48), 99).save(path), "label id 99 is none of Cityscapes'"),
        (CITY, lambda path: Image.new("I;16", (64, 48), 7).save(path), "no object in 1 images"),
        (CITY, lambda path: Image.new("I;16", (64, 50), 26000).save(path), "is not the size"),
        ("train", lambda c: c["objects"][0].update(label="nut"), "'nut' is none of Cityscapes' labels"),
        ("train", lambda c: c["objects"][0].update(polygon=[[1, 2], [3, 4]]), "write three or more points"),
        ("train", lambda c: c.pop("imgWidth"), "no imgWidth, imgHeight and objects"),
        ("val", lambda c: c["objects"][0].update(label="nut"), "val/.*'nut' is none of Cityscapes' labels"),
        (CITY, lambda path: shutil.copy(path, path.with_name("ulm_9_9_gtFine_instanceIds.png")), "there is no image"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_cityscapes_is_one_line(
    file: str, change: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = cityscapes(tmp_path / "data")
    if file in ("train", "val"):
        edit(next((root / "cityscapes/gtFine" / file).rglob("*_polygons.json")), change)
    else:
        change(root / file)
    refused(root, "cityscapes-instance", message, capsys)


@pytest.mark.fault(THIRD, "detect", "whatever detectron2 raises while it reads a data set, with --skip-check")
def test_without_the_check_an_exception_of_detectron2_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "data")
    edit(root / "coco" / "annotations" / "instances_train2017.json", each(id=5))
    assert detect(root, "coco-fpn-1x", "--skip-check") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "instances_train2017.json" in line
    assert "AssertionError: Annotation ids" in line


@pytest.mark.fault(THIRD, "detect", "a JPEG that is damaged in the middle")
@pytest.mark.parametrize("part", ["train2017", "val2017"])
def test_an_image_damaged_in_the_middle_is_named(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "data")
    for image in (root / "coco" / part).glob("*.jpg"):
        data = image.read_bytes()
        image.write_bytes(data[: len(data) // 2] + b"\xff\xc0" * 10 + data[len(data) // 2 + 20 :])
    assert detect(root, "coco-fpn-1x") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("detect: error: ")]
    assert re.search(rf"coco/{part}/\d+\.jpg: damaged", line), line


def test_a_mistyped_task_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ckpt", "random", "--task", "fashion-fnp"]) == 2
    assert capsys.readouterr().err.strip().endswith("no such task or file; did you mean fashion-fpn?")
