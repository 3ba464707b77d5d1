"""A data set of 30 images: parts, schedules, fractions and verdicts mean something, or are refused with the fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from results.comparison import interval
from results.verdict import Measured, judge
from tests.results.test_compare import expanded
from tests.transfer import own_sets
from transfer import compare, detect, finetune, knn, linear, segment, svm
from transfer.own_data import detection, detection_task, segmentation
from transfer.own_data.options import hold_out

RARE = 2  # images with an object of the last class


def test_every_class_of_two_images_is_trained_and_tested_on() -> None:
    names = [f"{i:02}" for i in range(30)]
    more = {3: {"rare"}, 4: {"rare"}, 7: {"single"}}
    shown = [{"common"} | more.get(i, set()) for i in range(30)]
    found = [hold_out(names, 0.2, seed, shown) for seed in range(20)]
    for held in found:
        assert len(held) == 6
        assert len(held & {"03", "04"}) == 1
        assert "07" not in held
    assert len({*map(frozenset, found)}) > 15
    purely_random = [hold_out(names, 0.2, seed) for seed in range(20)]
    assert sum(len(held & {"03", "04"}) == 1 for held in purely_random) < 20, "else the case shows nothing"
    with pytest.raises(ValueError, match="a class would have no training image: give a smaller part"):
        hold_out(names[:2], 0.5, 0, [{"a"}, {"b"}])


def boxes(root: Path, rare: int) -> Path:
    """Write 30 images in one part, of which `rare` have an object of the third class."""
    part = own_sets.content(root / "images", "train", {"train": 30})
    part["annotations"] = [row | {"iscrowd": 0} for row in part["annotations"]]
    with_third = list(dict.fromkeys(row["image_id"] for row in part["annotations"] if row["category_id"] == 40))
    for row in part["annotations"]:
        if row["category_id"] == 40 and row["image_id"] not in with_third[:rare]:
            row["category_id"] = 3
    (root / "train.json").write_text(json.dumps(part))
    return root


def load_boxes(root: Path, *options: str) -> detection.DetectionData:
    return detection.load(detect.parser().parse([f"--data={root}", f"--out={root.parent / 'out'}", *options]))


def test_boxes(tmp_path: Path) -> None:
    root = boxes(tmp_path / "pets", RARE)
    for seed in range(4):
        data = load_boxes(root, f"--split-seed={seed}")
        for file in data.files[::2]:
            assert {row["category_id"] for row in json.loads(Path(file).read_text())["annotations"]} == {3, 7, 40}
    path, said = detection_task.write_task(data, "fpn", None, "detectron2")
    settings = yaml.safe_load(path.read_text())
    images = data.trained
    assert settings["SOLVER"]["MAX_ITER"] == round(100 * images / 16)
    assert 0 < settings["SOLVER"]["WARMUP_ITERS"] < settings["SOLVER"]["STEPS"][0] < settings["SOLVER"]["MAX_ITER"]
    assert settings["TEST"]["PRECISE_BN"]["NUM_ITER"] == -(-images // 2)
    assert f"100 epochs of the {images} training images with objects" in " ".join(said)
    data = load_boxes(boxes(tmp_path / "few", 1))
    assert "1 of 3 classes have no test object and so no AP: cat" in data.notes


@pytest.mark.fault("figures that mean nothing", "detect", "test images with a class that no training image has")
def test_a_class_without_training_objects_is_refused(tmp_path: Path) -> None:
    root = own_sets.write_coco(tmp_path / "pets")
    content = json.loads((root / "train.json").read_text())
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] != 40]
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="cat: objects in the test images and none in the training images"):
        load_boxes(root)


def test_keypoints_are_told(tmp_path: Path) -> None:
    root = own_sets.write_coco(tmp_path / "pets")
    content = json.loads((root / "train.json").read_text())
    for row in content["annotations"][:4]:
        row["keypoints"] = [1, 2, 2]
    (root / "train.json").write_text(json.dumps(content))
    assert "keypoints of 4 objects are left out: boxes and masks are trained on" in load_boxes(root).notes


def masks(root: Path, rare: int) -> Path:
    """Write 30 images with palette masks of three classes, the last of them on `rare` images."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(30):
        labels = np.zeros((48, 64), np.uint8)
        labels[10:30, 10 : 20 + i] = 1
        labels[35:40, 30:50] = 2 * (i < rare)
        image = np.clip(rng.integers(0, 120, (48, 64, 3)) + 60 * labels[..., None], 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{i:02}.png")
        mask = Image.fromarray(labels, "P")
        mask.putpalette([0, 0, 0, 128, 64, 128, 0, 0, 142])
        mask.save(root / "masks" / f"{i:02}.png")
    (root / "classes.txt").write_text("ground\nroad\ncar\n")
    return root


def load_masks(root: Path, *options: str) -> tuple[segmentation.SegmentationData, dict[str, Any], str]:
    words = [f"--images={root}/images", f"--masks={root}/masks", f"--classes={root}/classes.txt"]
    data = segmentation.load(segment.parser().parse([*words, f"--out={root.parent / 'out'}", *options]))
    path, said = segmentation.write_task(data, None)
    return data, yaml.load(path.read_text(), yaml.UnsafeLoader), "\n".join(said)


def test_masks_with_a_palette(tmp_path: Path) -> None:
    root = masks(tmp_path / "roads", RARE)
    for seed in range(4):
        data, task, said = load_masks(root, f"--split-seed={seed}")
        assert (len(data.train), len(data.val)) == (24, 6)
        assert len({"00.png", "01.png"} & {image for image, _ in data.val}) == 1
        assert "absent_classes" not in task
    assert data.palette == [[0, 0, 0], [128, 64, 128], [0, 0, 142]]
    assert "100 epochs of 24 images, 150 iterations of 16" in said
    assert task["train_cfg"]["max_iters"] == 150
    assert task["train_cfg"]["val_interval"] == task["default_hooks"]["checkpoint"]["interval"] == 37
    data, task, said = load_masks(masks(tmp_path / "few", 1))
    assert task["absent_classes"] == [2]
    assert "1 of 3 classes are in no test mask and have no IoU: car" in said
    _, task, _ = load_masks(masks(tmp_path / "none", 0))
    assert "absent_classes" not in task, "a class that is never drawn is a mistake, and is refused"


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 photographs in three class folders."""
    root = tmp_path_factory.mktemp("thirty") / "birds"
    rng = np.random.default_rng(0)
    for colour, name in enumerate(("robin", "tit", "wren")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 156, (40, 50, 3), dtype=np.uint8)
            pixels[..., colour] += 100
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_a_comparison_of_classes(birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--ckpt", "random:resnet18?seed=1", "random:resnet18?seed=2", "--data", str(birds)]
    _, found = expanded(tmp_path, *given, "--fractions", "0.5", "1")
    words = {(one["task"], one["fraction"]): one["words"] for one in found}
    assert "--val-fraction=0.2" in words["knn", 1.0]
    assert "--k=[20]" in words["knn", 1.0]
    assert "--k=[12]" in words["knn", 0.5], "of as many images as there are"
    for (task, fraction), batch, epochs in ((("finetune", 1.0), 16, 300), (("finetune", 0.5), 11, 300)):
        assert f"--optim.batch={batch}" in words[task, fraction]
        assert f"--optim.epochs={epochs}" in words[task, fraction], "300 steps, as a step is all of an epoch"


@pytest.mark.fault("a newcomer's mistakes", "study", "a comparison with fractions of 24 training images")
@pytest.mark.parametrize(
    ("fraction", "said"),
    [
        ("0.01", "none of the 24 training images of birds but 0.2 (seed 0) has a label; --fractions 0.01 is too small"),
        ("0.1", "no labelled training image of class 'wren'; --fractions 0.1 is too small"),
        ("0.15", "linear at 0.15 of the labels: 4 training images are too few to hold out 10% of them"),
    ],
)
def test_fractions_of_too_few_images_are_refused(
    fraction: str, said: str, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(birds.parent)
    given = ["--ckpt", "random:resnet18?seed=1", "random:resnet18?seed=2", "--data", "birds", "--size", "32"]
    assert compare.main([*given, "--fractions", fraction, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert line.endswith(f"--fractions {fraction} is too small")


@pytest.mark.fault("figures that mean nothing", "tables", "a comparison over six test images")
def test_six_test_images_rarely_tell(tmp_path: Path) -> None:
    """The bootstrap alone would claim: of 6 images, 3 differ, and few resamples have none of them."""
    right, half = np.ones(6), np.array([1, 1, 1, 0, 0, 0.0])
    one, other = (Measured(name, [[float(hits.mean())] * 3], hits) for name, hits in (("a", right), ("b", half)))
    (verdict,) = judge([one, other])
    assert verdict.images is not None
    assert verdict.images.p < 0.05
    assert verdict.p == 0.25, "of the sign test: 2 of 2 ** 3 signs"
    assert "a and b are tied: 50.0 ± 0.0 points apart" in str(verdict)
    assert "they differ in 3 test images, and fewer than 6 can never tell" in str(verdict)
    nothing = Measured("c", [[0.0] * 3], np.zeros(6))
    assert judge([one, nothing])[0].p == pytest.approx(2 / 2**6)
    assert judge([one, nothing])[0].differs
    # Wilson's interval of 6 of 6, as in any table; a bootstrap's would be 100 to 100.
    assert interval(one) == pytest.approx((0.6097, 1.0), abs=1e-4)
    assert interval(other) == pytest.approx((0.1876, 0.8124), abs=1e-4)


@pytest.mark.fault("a newcomer's mistakes", "linear", "a seed given twice")
@pytest.mark.parametrize("command", [compare, detect, finetune, knn, linear, segment, svm])
def test_a_seed_that_is_given_twice_is_refused(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--ckpt", "random", "--seeds", "1", "2", "1"]) == 2
    assert "--seeds 1 2 1: one of them is given twice" in capsys.readouterr().err
