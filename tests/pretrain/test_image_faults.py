"""Folders and images that are wrong, through the entry of pre-training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.train import main
from tests.common.pictures import write
from tests.common.test_folders import refuse_to_read

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parents[2]
walking = pytest.mark.fault("walking folders", "pretrain", "links to parents, hidden files and folders, other formats")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """train/cat and train/dog with ten images each."""
    for i in range(20):
        write(tmp_path / "train" / ("cat", "dog")[i % 2] / f"{i:02}.png", 5 * i)
    return tmp_path / "train"


def options(data: Path, to: Path, **more: object) -> list[str]:
    """Two steps of eight images."""
    values = {
        "name": "r", "runs": to / "runs", "device": "cpu", "data.train": data, "data.workers": 0, "views.size": 32,
        "model.arch": "resnet18", "model.queue_size": 16, "model.bn_groups": 1, "optim.batch": 8, "optim.epochs": 1,
        "optim.compile": "false", "monitor.k": 2,
    } | {name.replace("__", "."): value for name, value in more.items()}  # fmt: skip
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def refused(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Start a run that must end with one line on stderr and leave nothing behind; return the line."""

    def run(data: Path = pets, **more: object) -> str:
        assert main(options(data, tmp_path, **more)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("pretrain: error: ")
        assert len(line) < 600
        assert not (tmp_path / "runs/r").exists()
        return line

    return run


def facts(to: Path) -> dict[str, object]:
    """Return what the checkpoint says of its data, and its last loss."""
    content = torch.load(to / "runs/r/last.pth", weights_only=True)
    rows = (to / "runs/r/metrics.jsonl").read_text().splitlines()
    return {name: content["meta"][name] for name in ("images", "labelled", "data", "labels_sha256")} | {
        "loss": [json.loads(row).get("loss") for row in rows]
    }


@walking
def test_what_is_left_out_changes_no_weight(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options(pets, tmp_path / "clean")) == 0
    assert "training set: 20 images, 2 classes (cat, dog), 10 images each" in capsys.readouterr().out
    (pets / "cat/loop").symlink_to("../../..")
    for name in ("cat/._1.png", ".ipynb_checkpoints/1.png", "__MACOSX/cat/1.png", "@eaDir/1.png"):
        write(pets / name)
    for name in ("dog/a.gif", "dog/b.avif", "cat/Thumbs.db"):
        (pets / name).touch()
    assert main(options(pets, tmp_path / "dirty")) == 0
    assert facts(tmp_path / "clean") == facts(tmp_path / "dirty")
    told = capsys.readouterr().err
    assert f"{pets}: 20 images; left out: 5 hidden or left behind by a system (" in told
    assert "2 images in a format that is not read (.gif 1, .avif 1)" in told
    assert "1 links to folders that are read anyway (cat/loop)" in told


@pytest.mark.fault("walking folders", "pretrain", "a folder that may not be read, a broken link")
def test_what_cannot_be_read_is_named(refused: Callable[..., str], pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pets / "dog/x.png").symlink_to("/not/mounted.png")
    assert "train/dog/x.png: a link to /not/mounted.png that cannot be followed" in refused()
    refuse_to_read(pets / "cat", monkeypatch)
    assert f"{pets}/cat: cannot be read (Permission denied)" in refused()


@pytest.mark.fault("walking folders", "pretrain", "names that are not UTF-8, with tabs and line breaks")
def test_any_file_name_is_trained_on(pets: Path, tmp_path: Path) -> None:
    (pets / "cat/00.png").rename(pets / "cat/caf\udce9\t\n.png")
    (pets / "dog").rename(pets / "sac \udce0 main")
    pets.rename(tmp_path / "donn\udce9es")
    words = options(tmp_path / "donn\udce9es", tmp_path, monitor__holdout=4, labels__ratio=0.5)
    done = subprocess.run(
        [sys.executable, "-m", "pretrain.train", *words], cwd=tmp_path, capture_output=True, timeout=120, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rb"2 classes (cat, sac \xe0 main)" in done.stdout
    kept = (tmp_path / "runs/r/labels.txt").read_text(encoding="utf-8").splitlines()
    assert len(kept) == facts(tmp_path)["labelled"] == 8


BROKEN = {"empty file": b"", "not an image": b"\x89PNG\r\n\x1a\n", "the JPEG ends early": b"\xff\xd8\xff\xe0\x00\x04xx"}


@pytest.mark.fault("walking folders", "pretrain", "broken images, also among those that are held out for kNN")
@pytest.mark.parametrize("what", BROKEN)
def test_broken_images_are_counted_before_the_first_step(
    what: str, refused: Callable[..., str], pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat/00.png", "cat/02.png"):
        (pets / name).write_bytes(BROKEN[what])
    line = refused(monitor__holdout=18)
    text = (
        f"2 of 20 training images cannot be read, more than data.max_corrupt=0.001 allows; the first: {pets}/cat/00.png"
    )
    assert line == f"pretrain: error: {text}: {line.rpartition(': ')[2]}"
    assert what in line
    assert main(options(pets, tmp_path, monitor__holdout=8, data__max_corrupt=0.1)) == 0
    said = capsys.readouterr()
    assert "2 of 20 training images cannot be read and will be replaced by others; the first: " in said.err
    assert "kNN on held-out images" in said.out


@pytest.mark.fault("walking folders", "pretrain", "a broken image in --monitor.images")
def test_an_image_to_measure_on_must_be_read(refused: Callable[..., str], pets: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(tmp_path / "val" / name / "1.png")
    (tmp_path / "val/dog/1.png").write_bytes(b"")
    assert "val/dog/1.png: empty file (1 of 2 held-out images cannot be read)" in refused(
        monitor__images=tmp_path / "val", data__max_corrupt=1
    )


@pytest.mark.fault("walking folders", "pretrain", "a broken image among the held-out ones, without the check")
def test_without_the_check_it_is_one_line_before_the_first_step(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pets / "cat/00.png").write_bytes(b"")
    words = options(pets, tmp_path, monitor__holdout=18, optim__batch=2, data__workers=1)
    assert main([*words, "--skip-check"]) == 2
    last = capsys.readouterr().err.split("\r")[-1].strip().splitlines()[-1]
    assert last.endswith(f"pretrain: error: {pets}/cat/00.png: empty file")


@pytest.mark.fault("walking folders", "pretrain", "--check-data alone, and --skip-check")
def test_check_data_and_skip_check(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options(pets, tmp_path), "--check-data"]) == 0
    assert "data check passed: 20 images, 2 classes (cat, dog)" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    for name in ("cat/00.png", "dog/01.png"):
        (pets / name).write_bytes(b"")
    assert main([*options(pets, tmp_path), "--check-data"]) == 2
    assert main([*options(pets, tmp_path, data__max_corrupt=0.1), "--skip-check"]) == 0
    assert torch.load(tmp_path / "runs/r/last.pth", weights_only=True)["meta"]["data_check"] == "skipped"
    assert main([*options(pets, tmp_path), "--check-data", "--skip-check"]) == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.fault("a newcomer's mistakes", "pretrain", "the root of train/ and val/ as --data.train")
def test_the_root_of_train_and_val_is_refused(refused: Callable[..., str], pets: Path) -> None:
    write(pets.parent / "val/cat/1.png")
    line = refused(pets.parent)
    assert f"train, val are parts of a data set and no classes: name {pets} (or write folders:{pets.parent} if" in line


@pytest.mark.fault("a newcomer's mistakes", "pretrain", "a typo in --data.train")
def test_a_typo_is_named_with_its_absolute_path(refused: Callable[..., str]) -> None:
    assert f"{Path('typo').absolute()}: no such file or folder" in refused(Path("typo"))


@pytest.mark.fault("figures that mean nothing", "pretrain", "kNN on images of one class")
def test_knn_of_one_class_is_refused(refused: Callable[..., str], pets: Path, tmp_path: Path) -> None:
    (pets / "dog").rename(tmp_path / "dog")
    assert "all images are of class 'cat': kNN would always be right" in refused(monitor__holdout=2)
