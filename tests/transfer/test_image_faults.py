"""Folders and images that are wrong, through the entries of all classification benchmarks.

Faults that harm nothing must leave every metric as it is without them; all others are one line before anything is
trained or written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import read_backbone
from tests.common.pictures import write
from tests.common.test_folders import refuse_to_read
from tests.transfer.garments import ROOT, arguments, recorded, write_garments
from transfer import finetune, knn, linear, svm
from transfer.classification import neighbours

pytestmark = pytest.mark.usefixtures("own_cache")

MAINS = {"knn": knn.main, "linear": linear.main, "finetune": finetune.main, "svm": svm.main}
SHORT: dict[str, dict[str, object]] = {
    "knn": {"k": "[3]"},
    "linear": {"penalties": "[0.01]"},
    "finetune": {"optim__epochs": 1, "optim__batch": 4, "optim__base_lr": "[0.01]", "optim__head_factor": "[1]"},
    "svm": {"costs": "[1]"},
}


def commands(kind: str, tried: str) -> pytest.MarkDecorator:
    """Try a fault in each command."""
    marked = [pytest.param(name, marks=pytest.mark.fault(kind, name, tried)) for name in MAINS]
    return pytest.mark.parametrize("command", marked)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"), train=6, test=3)


@pytest.fixture
def garments(made: Path, tmp_path: Path) -> Path:
    """Six training and three test images of two classes."""
    return Path(shutil.copytree(made, tmp_path / "garments"))


@pytest.fixture
def measure(garments: Path, tmp_path: Path) -> Callable[..., int]:
    """Run a command on the garments; options override."""

    def run(command: str, **more: object) -> int:
        words = arguments(garments, tmp_path, **SHORT[command] | more)
        return MAINS[command]([w.removesuffix("=FLAG").replace("_", "-") if w.endswith("=FLAG") else w for w in words])

    return run


@pytest.fixture
def refused(
    measure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Run a command that must end with one line on stderr, before anything is written; return the line."""

    def run(command: str, **more: object) -> str:
        assert measure(command, **more) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{command}: error: ")
        assert len(line) < 600
        assert not recorded(tmp_path)
        assert not [path for name in ("out", "cache") for path in (tmp_path / name).rglob("*")]
        return line

    return run


def first(folder: Path) -> Path:
    return min(folder.glob("*/*.png"))


# Walking folders


@commands("walking folders", "a link to a parent folder, hidden files and folders of five systems, other formats")
def test_what_is_left_out_changes_no_metric(
    command: str, measure: Callable[..., int], garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(command) == 0
    (clean,) = recorded(tmp_path)
    (garments / "train/1/parent").symlink_to("../../..")
    (garments / "test/8/self").symlink_to(".")
    for name in ("1/._x.png", ".ipynb_checkpoints/0.png", "__MACOSX/1/0.png", "@eaDir/1.png", "lost+found/1.png"):
        for split in ("train", "test"):
            write(garments / split / name)
    for name in ("1/a.gif", "1/b.gif", "8/c.heic", "8/Thumbs.db", "8/x.png:Zone.Identifier"):
        (garments / "train" / name).touch()
    capsys.readouterr()
    assert measure(command, force="FLAG") == 0
    (dirty,) = recorded(tmp_path)
    assert dirty.metrics == clean.metrics
    assert dirty.cost["images"] == clean.cost["images"]
    told = capsys.readouterr().err
    assert "train: 12 images; left out: 6 hidden or left behind by a system" in told
    assert "3 images in a format that is not read (.gif 2, .heic 1), 1 files that are no images (.identifier 1)" in told
    assert "1 links to folders that are read anyway (1/parent)" in told


@commands("walking folders", "a folder that may not be read")
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_closed_folder_is_named(
    command: str, split: str, refused: Callable[..., str], garments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_read(garments / split / "8", monkeypatch)
    assert f"{garments}/{split}/8: cannot be read (Permission denied)" in refused(command)


@commands("walking folders", "a file that may not be read")
def test_a_closed_file_is_named(
    command: str, refused: Callable[..., str], garments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = first(garments / "test")
    opened, access = Path.open, os.access

    def refusing(path: Path, *how: Any, **more: Any) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", refusing)
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    assert f"{closed}: Permission denied (1 of 6 images cannot be opened)" in refused(command)


@commands("walking folders", "a broken link")
def test_a_broken_link_is_named(command: str, refused: Callable[..., str], garments: Path) -> None:
    (garments / "train/8/x.png").symlink_to("/not/mounted.png")
    assert "train/8/x.png: a link to /not/mounted.png that cannot be followed" in refused(command)


@commands("walking folders", "one folder under the names of two classes")
def test_one_folder_in_two_classes_is_named(command: str, refused: Callable[..., str], garments: Path) -> None:
    (garments / "train/9").symlink_to("8")
    assert "are one folder: its images would be in two classes" in refused(command)


@commands(
    "walking folders", "names of files, classes and of the data set that are not UTF-8, with tabs and line breaks"
)
def test_any_file_name_is_measured_and_recorded(command: str, garments: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        first(garments / split).rename(first(garments / split).with_name("caf\udce9\t\n.png"))
        (garments / split / "1").rename(garments / split / "sac \udce0 \n main")
    garments.rename(tmp_path / "donn\udce9es")
    words = arguments(tmp_path / "donn\udce9es", tmp_path, **SHORT[command] | {"pictures": "true"})
    done = subprocess.run(
        [sys.executable, str(ROOT / "transfer" / f"{command}.py"), *words], cwd=tmp_path, capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"no pictures" not in done.stderr
    assert rb"donn\xe9es" in done.stdout
    (record,) = recorded(tmp_path)
    assert r"donn\xe9es" in record.title
    if command == "svm":
        assert r"AP sac \xe0 \n main" in record.metrics
    assert (tmp_path / "records" / record.path).read_text(encoding="utf-8")


# Images


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty file": lambda _: b"",
    "not an image": lambda content: content[: len(content) // 2],
    "an image": lambda _: b"<html>404</html>",
}


@commands("walking folders", "an image that is empty, cut off or no image, in train and in test")
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_image_is_named_before_anything_is_trained(
    command: str, split: str, what: str, refused: Callable[..., str], garments: Path
) -> None:
    broken = first(garments / split)
    broken.write_bytes(BROKEN[what](broken.read_bytes()))
    line = refused(command)
    assert f"error: {broken}: " in line
    assert what in line
    assert len(line) < 100 + len(str(broken))


@commands("walking folders", "broken images, without the check")
def test_without_the_check_a_broken_image_is_still_one_line(
    command: str, measure: Callable[..., int], garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = first(garments / "test")
    broken.write_bytes(b"")
    assert measure(command, skip_check="FLAG", workers=1) == 2
    assert capsys.readouterr().err.split("\r")[-1].strip() == f"{command}: error: {broken}: empty file"
    assert not recorded(tmp_path)


@commands("walking folders", "--check-data alone, and --skip-check")
def test_check_data_and_skip_check(
    command: str, measure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(command, check_data="FLAG") == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[0]
        .endswith("train 12 images, 2 classes (1, 8), 6 images each; test 6 images, 2 classes (1, 8), 3 images each")
    )
    assert not recorded(tmp_path)
    assert measure(command, skip_check="FLAG") == 0
    assert [record.environment["data_check"] for record in recorded(tmp_path)] == ["skipped"]


# Figures that mean nothing


def keep_one_class(garments: Path) -> None:
    for split in ("train", "test"):
        (garments / split / "8").rename(garments / f"{split}8")


def other_classes(garments: Path) -> None:
    for name in ("1", "8"):
        (garments / "test" / name).rename(garments / f"test/{name}0")


def copies_in_both_classes(garments: Path) -> None:
    for path in list((garments / "train/1").iterdir()):
        (garments / "train/8" / f"copy{path.name}").write_bytes(path.read_bytes())


def test_is_a_copy_of_train(garments: Path) -> None:
    (garments / "test").rename(garments / "old")
    for path in garments.glob("train/*/*.png"):
        copy = garments / "test" / path.parent.name / f"x{path.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())


test_is_a_copy_of_train.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (keep_one_class, "one class, '1': every prediction would be right"),
        (other_classes, "class '10', '80' is none of the 2 classes"),
        (copies_in_both_classes, "12 of 18 training images are copies of images with another label"),
        (test_is_a_copy_of_train, "12 of 12 test images are copies of training images"),
    ],
    ids=["one class", "other classes", "copies of other labels", "test copied from train"],
)
@commands("figures that mean nothing", "one class; other classes in the test; images and copies with two labels")
def test_data_that_no_figure_can_be_made_of(
    command: str, change: Callable[[Path], None], message: str, refused: Callable[..., str], garments: Path
) -> None:
    change(garments)
    assert message in refused(command)


@commands("figures that mean nothing", "a file listed with two labels")
def test_a_file_with_two_labels(command: str, refused: Callable[..., str], garments: Path) -> None:
    lines = [f"{path}\t{path.parent.name}\n" for path in sorted(garments.glob("train/*/*.png"))]
    (garments / "list.tsv").write_text("".join([*lines, lines[0].replace("\t1", "\t8")]))
    assert "is listed as '1' and '8': an image has one label" in refused(
        command, data=garments / "list.tsv", test=garments / "test"
    )


@pytest.mark.parametrize("command", [
    pytest.param(c, marks=pytest.mark.fault("figures that mean nothing", c, "test images of one class"))
    for c in ("knn", "linear", "finetune")
])  # fmt: skip
def test_a_test_of_one_class(command: str, refused: Callable[..., str], garments: Path) -> None:
    (garments / "test/8").rename(garments / "test8")
    assert "all images show '1': always to answer that would give 100 %" in refused(command)


def checkpoint(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """Write a random ResNet-18 in torchvision's layout, changed."""
    network = read_backbone("random:resnet18?seed=0").build()
    torch.save({name: change(t) if t.is_floating_point() else t for name, t in network.state_dict().items()}, path)
    return path


@commands("figures that mean nothing", "weights that are not finite")
def test_weights_that_are_not_finite(command: str, refused: Callable[..., str], tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "nan.pth", lambda t: t * torch.nan)
    assert f"{path}: " in (line := refused(command, ckpt=path))
    assert "not finite" in line


@commands("figures that mean nothing", "features that are the same for all images")
def test_constant_features(
    command: str, measure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "zero.pth", lambda t: t * 0)
    assert measure(command, ckpt=path) == 2
    last = capsys.readouterr().err.split("\r")[-1].strip()
    assert "are the same for all" in last
    assert len(last.splitlines()) == 1
    assert not recorded(tmp_path)
    assert not list((tmp_path / "cache").glob("*.features"))


# kNN that leaves one out


@pytest.mark.fault(
    "figures that mean nothing", "knn", "leave-one-out with one image per class, and with repeated images"
)
def test_leave_one_out_without_meaning(refused: Callable[..., str], garments: Path) -> None:
    for folder in (garments / "train").iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    train = garments / "train"
    assert "one image per class" in refused("knn", data=train, test=train, k="[1]")
    files = [f"{path}\t{path.parent.name}\n" for path in garments.glob("test/*/*.png")]
    listed = garments / "twice.tsv"
    listed.write_text("".join(files + files))
    assert "6 images are listed twice" in refused("knn", data=listed, test=listed)


@pytest.mark.fault("figures that mean nothing", "knn", "fewer images than processes")
def test_fewer_images_than_processes(
    refused: Callable[..., str], garments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "world_size", lambda: 13)
    assert "12 images do not fill 13 processes; use 12 or fewer" in refused(
        "knn", data=garments / "train", test=garments / "train"
    )


@pytest.mark.fault("figures that mean nothing", "knn", "k above the number of images")
def test_a_k_beyond_the_bank(refused: Callable[..., str]) -> None:
    assert "k=13: must lie between 1 and the 12 images of the bank" in refused("knn", k="[1,13]")


@pytest.mark.fault("figures that mean nothing", "knn", "a class with one image when one is left out")
def test_a_class_of_one_image_is_told(
    measure: Callable[..., int], garments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(garments / "train/shoe/1.png")
    assert measure("knn", data=garments / "train", test=garments / "train") == 0
    assert "1 classes have one image, so with it left out none can be right: shoe" in capsys.readouterr().err


# A newcomer's mistakes


@commands("a newcomer's mistakes", "a typo in --data")
def test_a_typo_is_named_with_its_absolute_path(command: str, refused: Callable[..., str]) -> None:
    assert f"--data typo: {Path('typo').absolute()}: no such file or folder" in refused(command, data="typo")


@commands("a newcomer's mistakes", "a folder of train/ and val/ as --test")
def test_the_root_as_a_test(command: str, refused: Callable[..., str], garments: Path) -> None:
    line = refused(command, data=garments / "train", test=garments)
    assert f"{garments}: test, train are parts of a data set and no classes: name {garments}/train" in line


@pytest.mark.fault("a newcomer's mistakes", "svm", "a VOC task without voc07:FOLDER")
def test_the_option_of_voc_is_shown(refused: Callable[..., str]) -> None:
    assert "so --data voc07:FOLDER, VOCdevkit's VOC2007" in refused("svm", task="voc07-svm")
