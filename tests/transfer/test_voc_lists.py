"""Wrong lists of VOC07 are one line before any feature is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.common.pictures import write
from tests.transfer.garments import arguments, recorded
from transfer import svm

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("cat_trainval", ["a 1", "b -1", "c -1", "gone -1"], r"gone.jpg: No such file or directory (1 of 4"),
        ("cat_trainval", ["a 1", "b 2", "c -1"], "line 'b 2': must be a name and 1, 0 or -1"),
        ("cat_trainval", ["a 1", "a 1", "c -1"], "a is listed twice"),
        ("cat_test", ["a 1", "e -1"], "1 images are in trainval and in test: a"),
        ("cat_test", ["d -1", "e -1"], "no test image shows class 'cat'"),
        ("cat_test", ["d 1", "e 1"], "every test image shows class 'cat'"),
        ("cat_trainval", ["a -1", "b -1", "c 0"], "class 'cat' is shown by none or by all of the 3 training images"),
    ],
)
@pytest.mark.fault(
    "figures that mean nothing", "svm", "VOC07 lists: missing and repeated images, other labels, no positives"
)
def test_voc_lists(
    name: str, lines: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "voc/ImageSets/Main"
    lists.mkdir(parents=True)
    for i, image in enumerate("abcde"):
        write(tmp_path / f"voc/JPEGImages/{image}.png", i).rename(tmp_path / f"voc/JPEGImages/{image}.jpg")
    for split, images in (("trainval", ["a 1", "b -1", "c -1"]), ("test", ["d 1", "e -1"])):
        (lists / f"cat_{split}.txt").write_text("\n".join(lines if name == f"cat_{split}" else images))
    assert svm.main(arguments(Path(f"voc07:{tmp_path}/voc"), tmp_path, task="voc07-svm", costs="[1]")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not recorded(tmp_path)
    assert not (tmp_path / "cache").exists()
