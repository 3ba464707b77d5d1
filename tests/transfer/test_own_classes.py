"""Labelled images of a user: one folder that is split, CSV lists, several labels per image."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from common.images import load_images
from pretrain.monitor import data_hint
from results.tables import main as tables
from tests.transfer.own_sets import draw
from transfer import knn, linear, svm
from transfer.benchmark import read_checkpoint
from transfer.classification import several_labels
from transfer.classification.data import load_class_data
from transfer.classification.features import FeatureCache
from transfer.classification.voc import average_precision, load_multilabel

from .garments import recorded

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """pets/cat with 12 images and pets/dog with 8."""
    for i in range(20):
        draw(tmp_path / "pets" / ("dog" if i < 8 else "cat") / f"{i:02}.png", i)
    return tmp_path / "pets"


def words(tmp_path: Path, data: Path, *more: str) -> list[str]:
    out = [f"--{name}={tmp_path / name}" for name in ("out", "records", "cache")]
    return ["--ckpt=random:resnet18", f"--data={data}", "--size=32", "--device=cpu", "--workers=0", *out, *more]


def test_a_folder_is_split_by_a_seed_class_by_class(pets: Path, tmp_path: Path) -> None:
    def parts(*more: str) -> tuple[set[str], set[str]]:
        data = load_class_data(knn.parser().parse(words(tmp_path, pets, *more)))
        return {*data.train.names}, {*data.test.names}

    train, test = parts("--val-fraction=0.25")
    assert train | test == {*load_images([str(pets)]).names}
    assert not train & test
    assert sorted(name.partition("/")[0] for name in test) == ["cat"] * 3 + ["dog"] * 2
    assert parts("--val-fraction=0.25") == (train, test)
    assert parts("--val-fraction=0.25", "--split-seed=1") != (train, test)


def test_a_folder_is_measured_and_a_table_is_made_of_it(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--val-fraction=0.25", "--k=[1]", "--label=first try"]
    assert knn.main(words(tmp_path, pets, *given)) == 0
    said = capsys.readouterr().out
    again = shlex.join(words(tmp_path, pets, *given[:2])[1:])
    tables_again = f"python results/tables.py --records {tmp_path / 'records'} --out runs/tables"
    assert said.splitlines()[-1] == f"next: python transfer/knn.py --ckpt CHECKPOINT {again}; then {tables_again}"
    assert linear.main(words(tmp_path, pets, "--val-fraction=0.25", "--penalties=[0.1]", "--seeds", "0", "1")) == 0
    records = recorded(tmp_path)
    assert {record.environment["data"] for record in records} == {"pets"}
    assert len({record.environment["data_identity"] for record in records}) == 1
    assert len({record.config_hash for record in records}) == 2
    assert tables(["--records", str(tmp_path / "records"), "--out", str(tmp_path / "tables")]) == 0
    table = (tmp_path / "tables" / "data-pets.md").read_text()
    assert "first try" in table
    assert "kNN" in table
    assert "linear" in table


@pytest.mark.fault("a newcomer's mistakes", "knn", "--val-fraction out of range, with --test, or of too few images")
def test_mistakes_with_a_split(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, expected in (
        (["--val-fraction=2"], "--val-fraction 2: must be between 0 and 1"),
        (["--val-fraction=0.001"], "of 20 images, 0 would be tested on"),
        (["--val-fraction=0.2", "--test=x"], "give one of them"),
        ([], "--val-fraction 0.2 tests on a part of it"),
    ):
        assert knn.main(words(tmp_path, pets, *more)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line


def test_csv_lists_are_read_by_their_header(pets: Path) -> None:
    rows = [f"{path.relative_to(pets)},x,{path.parent.name}" for path in sorted(pets.rglob("*.png"))]
    (pets / "list.csv").write_text("\n".join(["File,split,Class", *rows, ""]))
    images = load_images([str(pets / "list.csv")])
    assert images.classes == ["cat", "dog"]
    assert len(images) == 20
    assert [name.partition("/")[0] for name in images.names] == [images.classes[i] for i in images.labels]
    (pets / "plain.csv").write_text("cat/08.png,cat\n")
    with pytest.raises(ValueError, match=r"the header is 'cat/08\.png,cat': a CSV file begins with a header"):
        load_images([str(pets / "plain.csv")])
    (pets / "short.csv").write_text("path,label\ncat/08.png\n")
    with pytest.raises(ValueError, match=r"short\.csv:2: 1 cells, and the header has 2"):
        load_images([str(pets / "short.csv")])


def write_tables(pets: Path) -> None:
    """Write train.csv and val.csv: classes big, red and odd, with one unknown."""
    paths = sorted(pets.rglob("*.png"))
    for name, part in (("train", paths[:14]), ("val", paths[14:])):
        rows = [
            f"{p.relative_to(pets)},{i % 2},{int(i % 3 == 0)},{'' if i == 1 else int(i % 4 < 2)}"
            for i, p in enumerate(part)
        ]
        (pets / f"{name}.csv").write_text("\n".join(["path,big,red,odd", *rows]))


def test_several_labels_per_image_are_measured_by_svms(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tables(pets)
    options = svm.parser().parse(words(tmp_path, pets / "train.csv", f"--test={pets / 'val.csv'}"))
    data = load_multilabel(options)
    assert data.classes == ["big", "red", "odd"]
    np.testing.assert_array_equal(data.targets[:3], [[0, 1, 1], [1, 0, -1], [0, 0, 0]])
    assert (len(data.train), len(data.test)) == (14, 6)
    assert svm.main(words(tmp_path, pets / "train.csv", f"--test={pets / 'val.csv'}", "--costs=[1]")) == 0
    (record,) = recorded(tmp_path)
    assert "mAP" in record.metrics
    assert record.environment["data_identity"]
    capsys.readouterr()
    assert knn.main(words(tmp_path, pets / "train.csv", f"--test={pets / 'val.csv'}")) == 2
    assert "several labels per image are for transfer/svm.py" in capsys.readouterr().err


def test_several_labels_per_image_are_measured_by_linear_classification(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The AP of each class is that of scikit-learn's logistic regression on the images whose label is known."""
    write_tables(pets)
    given = words(tmp_path, pets / "train.csv", f"--test={pets / 'val.csv'}")
    assert linear.main([*given, "--penalties=[0.01]"]) == 0
    assert "one logistic regression per class" in capsys.readouterr().out
    (record,) = recorded(tmp_path)
    assert (record.headline, record.task) == ("mAP", "linear")
    data = load_multilabel(linear.parse(given))
    backbone = read_checkpoint("random:resnet18", 0)
    cache = FeatureCache(32, torch.device("cpu"), folder=tmp_path / "cache")
    x, x_test = (cache(backbone, backbone.build(), images, "").numpy() for images in (data.train, data.test))
    scaler = StandardScaler().fit(x)
    expected = {}
    for name, y, y_test in zip(data.classes, data.targets.T, data.test_targets.T, strict=True):
        known, tested = y != -1, y_test != -1
        model = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=10_000)
        model.fit(scaler.transform(x[known]), y[known])
        scores = model.decision_function(scaler.transform(x_test[tested]))
        expected[f"AP {name}"] = average_precision(y_test[tested], scores)
    assert {name: value for name, value in record.metrics.items() if name != "mAP"} == pytest.approx(expected)
    assert record.metrics["mAP"] == pytest.approx(np.mean([*expected.values()]))
    assert linear.main(given) == 2, "the tenth is one image, on which no class has an AP"
    assert "14 training images are too few to hold out 10% of them for choosing the pen" in capsys.readouterr().err
    big = replace(data, targets=np.tile(data.targets, (3, 1)))
    held = several_labels.held_out(big, 0)
    assert len(held) == 4
    assert {1} <= {*big.targets[held, 0]}
    assert linear.main([*given, "--mode=moco"]) == 2
    assert "--mode moco: one label per image; several labels go with --mode cached" in capsys.readouterr().err
    table = (pets / "train.csv").read_text().replace(",0,", ",1,")
    (pets / "train.csv").write_text(table)
    assert linear.main([*given, "--penalties=[0.01]", "--force"]) == 2
    assert "is shown by none or by all of the training images" in capsys.readouterr().err
    assert tables(["--records", str(tmp_path / "records"), "--out", str(tmp_path / "tables")]) == 0
    assert "mAP" in next((tmp_path / "tables").glob("data-*.md")).read_text()


@pytest.mark.fault("a newcomer's mistakes", "svm", "a table of several labels that is malformed")
def test_mistakes_in_a_table_of_labels(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(pets)
    whole = (pets / "train.csv").read_text()
    for spoiled, expected in (
        (whole.replace(",1,", ",yes,", 1), "must be 1 (present), 0 (absent) or blank"),
        (whole.replace("big,red", "red,red"), "names a class twice"),
        (whole + "\n" + whole.splitlines()[1], "is listed twice"),
        (whole.replace("08.png", "nine.png"), "no such image"),
        (whole.splitlines()[0], "no images"),
    ):
        (pets / "train.csv").write_text(spoiled)
        assert svm.main(words(tmp_path, pets / "train.csv", f"--test={pets / 'val.csv'}")) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
    (pets / "train.csv").write_text(whole)
    assert svm.main(words(tmp_path, pets / "train.csv", f"--test={pets / 'train.csv'}")) == 2
    assert "14 of its images are in" in capsys.readouterr().err


def test_the_next_command_keeps_the_size_whatever_the_checkpoint(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --size, random weights would be measured at 224 pixels, in another column of the tables."""
    given = [word for word in words(tmp_path, pets, "--val-fraction=0.25", "--k=[1]") if "--size" not in word]
    assert knn.main(given) == 0
    assert "--size 224; then python results/tables.py" in capsys.readouterr().out


def test_the_hint_after_pre_training_names_the_users_data(tmp_path: Path) -> None:
    assert data_hint(["fashion:train"]) == ""
    assert data_hint(["/data/my birds"]) == " --data '/data/my birds' --test TEST_IMAGES"
    (tmp_path / "val").mkdir()
    assert data_hint([f"{tmp_path}/train"]) == f" --data {tmp_path}"
    (tmp_path / "photos").mkdir()
    (tmp_path / "train" / "owl").mkdir(parents=True)
    mixed = [f"{tmp_path}/photos", f"flat:{tmp_path}/more", f"{tmp_path}/train"]
    assert data_hint(mixed) == f" --data {tmp_path}", "a source without labels cannot be measured on"
    assert data_hint(mixed[:2]) == " --data LABELLED_IMAGES --val-fraction 0.2"
