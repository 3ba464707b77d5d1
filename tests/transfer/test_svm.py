"""SVMs on frozen features: average precision, VOC 2007's lists, low-shot samples, the command."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from common.cli import run_cli
from common.images import load_images
from tests.transfer.garments import ROOT, arguments, recorded, write_garments
from transfer.classification.options import costs_of
from transfer.classification.svms import class_ap, cross_validate, full_ap
from transfer.classification.voc import (
    ABSENT,
    DIFFICULT,
    PRESENT,
    MultiLabel,
    average_precision,
    low_shot_sample,
    read_voc,
    voc_classes,
)
from transfer.svm import main, parser


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"))


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC 2007's tree with crops of two photos: `flower`, `temple`, and `yellow` for crops of a yellow sheet too."""
    root = tmp_path_factory.mktemp("voc")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    photos = {"temple": load_sample_image("china.jpg"), "flower": load_sample_image("flower.jpg")}
    rng = np.random.default_rng(0)
    for split, count in (("trainval", 24), ("test", 16)):
        lines: dict[str, list[str]] = {name: [] for name in ("flower", "temple", "yellow")}
        for i in range(count):
            name, what, yellow = f"{split}{i:03d}", ("temple", "flower")[i % 2], i % 3 == 0
            top, left = rng.integers(0, 300), rng.integers(0, 500)
            crop = photos[what][top : top + 120, left : left + 120].copy()
            if yellow:
                crop[40:] = (250, 230, 20)
            cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), crop[..., ::-1])
            for symbol, of in ((what == "flower", "flower"), (what == "temple", "temple"), (yellow, "yellow")):
                lines[of].append(f"{name} {' 1' if symbol else '-1'}")
        lines["yellow"][1] = lines["yellow"][1].replace("-1", " 0")  # difficult
        for name, rows in lines.items():
            (root / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text("\n".join(rows) + "\n")
    return root


def area_by_definition(targets: np.ndarray, scores: np.ndarray) -> float:
    """Recall's steps times the highest precision at that recall or more."""
    order = np.argsort(-scores, kind="stable")
    hits = (targets[order] == PRESENT).astype(float)
    recall = np.cumsum(hits) / hits.sum()
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    area, before = 0.0, 0.0
    for r in np.unique(recall[recall > 0]):
        area += (r - before) * precision[recall >= r].max()
        before = r
    return area


@given(st.lists(st.tuples(st.booleans(), st.integers(-50, 50)), min_size=1, max_size=60))
def test_average_precision_equals_the_area_by_definition(rows: list[tuple[bool, int]]) -> None:
    targets = np.array([PRESENT, *(PRESENT if present else ABSENT for present, _ in rows)])
    scores = np.array([0.5, *(float(score) for _, score in rows)])
    assert average_precision(targets, scores) == pytest.approx(area_by_definition(targets, scores))


def test_average_precision_of_the_best_and_the_worst_order() -> None:
    targets = np.array([PRESENT] * 3 + [ABSENT] * 7)
    assert average_precision(targets, -np.arange(10.0)) == 1.0
    assert average_precision(targets, np.arange(10.0)) == pytest.approx((3 / 10) / 1)  # made monotone: 1/8, 2/9, 3/10


def test_difficult_images_train_as_negatives_and_do_not_count_in_the_test() -> None:
    """As in OpenSelfSup's code, whose results are published: all that is not present is a negative there."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 5)), np.array([PRESENT, ABSENT] * 40)
    x[y == PRESENT] += 1
    hard, hard_test = rng.normal(size=(9, 5)) + 1, rng.normal(size=(7, 5))
    images = load_images(["fashion:test"], root=str(ROOT / "data"))

    def measured(symbol: int, x_test: np.ndarray, y_test: np.ndarray) -> float:
        targets = np.append(y, [symbol] * len(hard))[:, None]
        data = MultiLabel(images, images, targets, y_test[:, None], ["owl"])
        return full_ap(np.vstack([x, hard]), x_test, data, [0.1, 1.0], 0)["mAP"]

    difficult = measured(DIFFICULT, np.vstack([x, hard_test]), np.append(y, [DIFFICULT] * 7))
    assert difficult == measured(ABSENT, x, y)
    assert difficult != class_ap(x, y, x, y, 1.0, 0)  # they do train


def test_difficult_images_are_left_out_of_low_shot_samples() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 5)), np.array([PRESENT, ABSENT] * 40)
    x[y == PRESENT] += 1
    with_difficult = class_ap(
        np.vstack([x, 100 * x[:9]]), np.append(y, [DIFFICULT] * 9), np.vstack([x, -x[:7]]),
        np.append(y, [DIFFICULT] * 7), 1.0, 0,
    )  # fmt: skip
    assert with_difficult == class_ap(x, y, x, y, 1.0, 0)


def test_costs_are_those_of_the_task() -> None:
    tasks = {task: costs_of(parser().parse_args([f"--task={task}"])) for task in ("svm", "voc07-svm")}
    assert tasks == {"svm": [0.01, 0.1, 1, 10, 100, 1000], "voc07-svm": [1, 10, 100, *(0.5**i for i in range(4, 20))]}
    assert costs_of(parser().parse_args(["--task=voc07-svm", "--costs=[3]"])) == [3]


def test_a_class_too_small_for_folds_is_named() -> None:
    y = np.array([PRESENT] * 2 + [ABSENT] * 10)
    with pytest.raises(ValueError, match="class owl has fewer than 3 positives"):
        cross_validate(np.zeros((12, 2)), y, 1.0, 0, "owl")


@pytest.mark.parametrize("k", [1, 3])
def test_a_low_shot_sample_has_k_positives_and_k_times_the_other_classes_negatives(k: int) -> None:
    rng = np.random.default_rng(0)
    targets = np.where(rng.random((200, 4)) < 0.3, PRESENT, ABSENT)
    targets[::10, 2] = DIFFICULT
    sample = low_shot_sample(targets, k, np.random.default_rng(1))
    for c in range(4):
        assert [(sample[:, c] == symbol).sum() for symbol in (PRESENT, ABSENT)] == [k, 3 * k]
    kept = sample != DIFFICULT
    assert (sample[kept] == targets[kept]).all()
    assert (low_shot_sample(targets, k, np.random.default_rng(2)) != sample).any()


def test_voc_lists_are_read(voc: Path) -> None:
    classes = voc_classes(voc)
    assert classes == ["flower", "temple", "yellow"]
    images, targets = read_voc(voc, "trainval", classes)
    assert len(images) == 24
    assert targets[:, 0].tolist() == [ABSENT, PRESENT] * 12
    assert targets[:4, 2].tolist() == [PRESENT, DIFFICULT, ABSENT, PRESENT]
    assert images.read(0).shape == (120, 120, 3)


def test_voc_is_measured_and_recorded(voc: Path, tmp_path: Path) -> None:
    given = [*arguments(voc, tmp_path, data=f"voc07:{voc}", size=64), "--task=voc07-svm", "--costs=[0.1,10]"]
    assert main(given) == 0
    (record,) = recorded(tmp_path)
    assert record.task == "voc07-svm"
    parts = [record.metrics[f"AP {name}"] for name in ("flower", "temple", "yellow")]
    assert record.metrics["mAP"] == pytest.approx(np.mean(parts))
    assert record.metrics["AP yellow"] > 0.9  # random features see colours
    assert f"train voc07:{voc} trainval, test voc07:{voc} test" in record.title


def test_low_shot_on_class_folders(garments: Path, tmp_path: Path) -> None:
    assert main([*arguments(garments, tmp_path), "--task=lowshot", "--k=[1,16]", "--samples=3"]) == 0
    (record,) = recorded(tmp_path)
    assert record.metrics.keys() == {"mAP_k1", "mAP_k16"}
    assert record.metrics["mAP_k16"] > 0.9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--task=voc07-svm"], "voc07-svm and voc07-lowshot go with voc07:FOLDER alone"),
        (["--task=lowshot", "--k=[21]", "--samples=1"], "20 positives, 21 are needed; lower --k"),
        (["--task=voc07-svm", "--data=voc07:/nowhere"], "name VOCdevkit's VOC2007 folder"),
        (["--task=voc07-svm", "--data=voc07:VOC", "--labels.ratio=0.5"], "used with all its labels"),
        (["--data=GARMENTS/train", "--test=GARMENTS/train/"], "these are the training images; give others"),
        (["--costs=[0]"], "must be above 0"),
        (["--costs=[]"], "--costs []: one or more numbers"),
        (["--task=lowshot", "--cost=0"], "--cost 0.0: must be above 0"),
        (["--task=lowshot", "--k=[]"], "--k []: one or more numbers of positives"),
        (["--task=lowshot", "--k=[1,0]"], "--k [1, 0]: one or more numbers of positives, 1 or above"),
        (["--task=lowshot", "--samples=0"], "--samples 0: must be 1 or more"),
        (["--test=GARMENTS/test/1", "--costs=[1]"], "1: 10 of 10 test images have no label"),
        (["--test=ONE", "--costs=[1]"], "no test image shows class '8': it has no AP"),
        (["--device=foo"], "device=foo: must be auto, cpu, cuda or cuda:N"),
        (["--cache=ONE/1/a.png/cache"], "a.png/cache: Not a directory"),
        (["--sample=3"], "--sample: unknown option; did you mean --samples?"),
        (["--recipe=ONE/typo.yaml"], "typo.yaml: sample: unknown option; did you mean --samples?"),
        (["--recipe=voc07_svm"], "--data is missing: recipe voc07_svm needs voc07:FOLDER"),
    ],
)
def test_a_mistake_is_one_line(
    wrong: list[str], message: str, garments: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one" / "1").mkdir(parents=True)
    shutil.copy(next((garments / "test" / "1").iterdir()), tmp_path / "one" / "1" / "a.png")
    (tmp_path / "one" / "typo.yaml").write_text("sample: 3\n")
    words = {"=voc07:VOC": f"=voc07:{voc}", "GARMENTS": str(garments), "ONE": str(tmp_path / "one")}
    for short, path in words.items():
        wrong = [word.replace(short, path) for word in wrong]
    given = [
        word for word in arguments(garments, tmp_path) if "--recipe=voc07_svm" not in wrong or "--data" not in word
    ]
    assert main([*given, *wrong]) == 2
    assert message in capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert not recorded(tmp_path)


def test_an_interrupted_command_names_resume_only_where_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run_cli("linear", interrupted) == 130
    assert run_cli("svm", interrupted, resumable=False) == 130
    assert capsys.readouterr().err == (
        "linear: interrupted; the same command with --resume continues it\nsvm: interrupted\n"
    )


def test_a_broken_list_is_named(voc: Path, tmp_path: Path) -> None:
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "cat_trainval.txt").write_text("a 1\nb 2\n")
    with pytest.raises(ValueError, match=r"cat_trainval\.txt: line 'b 2': must be a name and 1, 0 or -1"):
        read_voc(tmp_path, "trainval", ["cat"])
    (lists / "cat_trainval.txt").write_text("a 1\nb -1\n")
    (lists / "dog_trainval.txt").write_text("a 1\nc -1\n")
    with pytest.raises(ValueError, match=r"dog_trainval\.txt: lists other images than cat_trainval\.txt"):
        read_voc(tmp_path, "trainval", ["cat", "dog"])
    with pytest.raises(ValueError, match=r"cat_test\.txt: no such file"):
        read_voc(tmp_path, "test", ["cat"])
