"""The kNN command: from any checkpoint to a record; the search in blocks and over ranks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import common.distributed
from common.features import extract_features
from common.images import load_images
from common.knn import accuracy, rank_classes
from tests.common.gloo import run_two
from tests.transfer.garments import ROOT, arguments, per_image, recorded, write_garments
from transfer.benchmark import read_checkpoint
from transfer.classification.neighbours import nearest
from transfer.knn import main

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"))


def options(garments: Path, to: Path, **more: object) -> list[str]:
    return arguments(garments, to, **{"k": "[1, 5]", **more})


def test_a_random_network_is_measured_once_and_recorded(garments: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert main(options(garments, tmp_path)) == 0
    (record,) = recorded(tmp_path)
    assert record.metrics.keys() == {"knn_top1_k1", "knn_top1_k5"}
    assert record.metrics["knn_top1_k5"] > 0.9
    assert record.headline == "knn_top1_k5"
    assert record.backbone["arch"] == "resnet18"
    assert main([*options(garments, tmp_path), "--force"]) == 0
    (again,) = recorded(tmp_path)
    assert again.metrics == record.metrics
    assert again.cost["seconds"] != record.cost["seconds"]  # measured again
    assert main([*options(garments, tmp_path), "--seeds", "1"]) == 0
    assert {r.pretrain_seed for r in recorded(tmp_path)} == {0, 1}


def test_hits_of_the_headline_metric_are_saved_beside_the_record(garments: Path, tmp_path: Path) -> None:
    assert main(options(garments, tmp_path, k="[1, 39]", temperature="[0.01, 1]")) == 0
    (record,) = recorded(tmp_path)
    assert record.headline == "knn_T0.01_top1_k39"
    hits = per_image(tmp_path, record)
    assert hits.keys() == {record.headline}
    assert hits[record.headline].shape == (20,)
    assert hits[record.headline].mean() == record.metrics[record.headline]


def top1(garments: Path, leave_one_out: bool, k: int, temperature: float) -> float:
    network = read_checkpoint("random:resnet18", 0).build()
    bank, queries = (load_images([str(garments / split)]) for split in ("train", "test"))
    queries = bank if leave_one_out else queries
    features = [extract_features(network, images, 32, CPU, workers=0) for images in (bank, queries)]
    labels = [torch.from_numpy(images.labels) for images in (bank, queries)]
    rows = torch.arange(len(queries)) if leave_one_out else None
    found = nearest(features[1], features[0], labels[0], k, rows)
    return accuracy(rank_classes(found.similarity, found.labels, 2, temperature), labels[1])


def test_every_k_and_temperature_equals_the_plain_classifier(garments: Path, tmp_path: Path) -> None:
    assert main(options(garments, tmp_path, k="[1, 39]", temperature="[0.01, 1]")) == 0
    (record,) = recorded(tmp_path)
    expected = {
        f"knn_T{t:g}_top1_k{k}": top1(garments, False, k, t) for t in (0.01, 1.0) for k in (1, 39)
    }  # fmt: skip
    assert record.metrics == pytest.approx(expected)


def test_train_and_test_alike_means_leave_one_out(
    garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = garments / "train"
    assert main(options(garments, tmp_path, data=train, test=f"{train}/", k="[1, 39]")) == 0
    shown = capsys.readouterr().out
    assert "bank: 40 images, 0 MiB in torch.float32" in shown
    assert "test features" not in shown  # they are the bank, not a copy of it
    (record,) = recorded(tmp_path)
    assert "leave one out" in record.title
    assert record.metrics["knn_top1_k39"] == pytest.approx(top1(garments, True, 39, 0.07))
    assert record.metrics["knn_top1_k1"] < 1


@pytest.mark.parametrize("store", ["fp16", "bf16"])
def test_a_bank_in_half_precision_is_in_the_title_and_close(store: str, garments: Path, tmp_path: Path) -> None:
    assert main(options(garments, tmp_path, store=store)) == 0
    (record,) = recorded(tmp_path)
    assert f"{store} bank" in record.title
    assert record.metrics["knn_top1_k5"] == pytest.approx(top1(garments, False, 5, 0.07), abs=0.051)  # one image
    (kept,) = {path.stat().st_size for path in (tmp_path / "cache").glob("*.features") if path.stat().st_size > 30000}
    assert kept == 40 * 512 * 2


def test_the_picture_is_drawn(garments: Path, tmp_path: Path) -> None:
    assert main(options(garments, tmp_path, pictures="true")) == 0
    (picture,) = (tmp_path / "out").rglob("neighbours.png")
    assert picture.stat().st_size > 5000


@pytest.mark.ddp
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_two_processes_with_half_of_the_bank_each_find_the_same(leave_one_out: bool, tmp_path: Path) -> None:
    garments = write_garments(tmp_path / "odd", train=20, test=5)
    next((garments / "train" / "1").iterdir()).unlink()  # 39 bank images: unequal parts
    (next((garments / "test" / "1").iterdir())).unlink()
    k = "[1, 5, 38]"
    test = {"data": garments / "train", "test": garments / "train"} if leave_one_out else {}
    assert main(options(garments, tmp_path / "one", k=k, **test)) == 0
    (alone,) = recorded(tmp_path / "one")
    results = run_two(shared, str(garments), str(tmp_path / "two"), k, leave_one_out)
    assert [result["status"] for result in results] == [0, 0]
    (together,) = recorded(tmp_path / "two")  # one process writes
    assert together.metrics == pytest.approx(alone.metrics)
    parts = sorted(path.stat().st_size // 2048 for path in (tmp_path / "two" / "cache").glob("*.features"))
    assert parts == ([19, 20] if leave_one_out else [4, 5, 19, 20])


def shared(garments: str, to: str, k: str, leave_one_out: bool) -> dict[str, Any]:
    """The command as one of two processes; the process group is there already and must outlive it."""
    common.distributed.start = lambda device: torch.device(device)  # type: ignore[assignment]
    common.distributed.stop = lambda: None  # type: ignore[assignment]
    test = {"data": f"{garments}/train", "test": f"{garments}/train"} if leave_one_out else {}
    return {"status": main(options(Path(garments), Path(to), k=k, **test))}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--ckpt=/no/such.pth"], "/no/such.pth"),
        (["--data=/no/such/folder", "--test=fashion:test"], "/no/such/folder: no such file or folder"),
        (["--data=/no/such/folder"], "--test is missing"),
        (["--k=[41]"], "k=41: must lie between 1 and the 40 images of the bank; --k '[1]' would do"),
        (["--temperature=0"], "--temperature 0.0: must be above 0"),
        (["--temperature=[]"], "--temperature []: give one or more numbers"),
        (["--k=[]"], "--k []: give one or more numbers"),
        (["--seeds", "0", "1", "2", "--ckpt=random:resnet18?seed=0"], "--seeds 0 1 2: kNN draws nothing at random"),
        (["--data=HERE/holes/train", "--test=GARMENTS/test"], "train/shoe: a class folder without images"),
        (["--size=0"], "--size 0: must be a positive number"),
        (["--test=fashion"], "fashion:test: class"),
        (["--test=fashion:test"], "have different classes"),
        (["--test=HERE/same.tsv"], "to leave one out give both the same name"),
        (["--recipe=imagenet_kn"], "did you mean imagenet_knn?"),
        (["--temprature=1"], "--temprature: unknown option; did you mean --temperature?"),
        (["--recipe=HERE/typo.yaml"], "typo.yaml: temprature: unknown option; did you mean --temperature?"),
        (["--labels.ratio=0"], "none of the 40 training images"),
    ],
)
def test_a_mistake_is_one_line(
    wrong: list[str], message: str, garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"{path}\t{path.parent.name}\n" for path in sorted(garments.glob("train/*/*"))]
    (tmp_path / "same.tsv").write_text("".join(files))
    (tmp_path / "typo.yaml").write_text("temprature: 1\n")
    shutil.copytree(garments / "train", tmp_path / "holes" / "train")
    (tmp_path / "holes" / "train" / "shoe").mkdir()
    (tmp_path / "holes" / "train" / ".thumbnails").mkdir()
    wrong = [word.replace("HERE", str(tmp_path)).replace("GARMENTS", str(garments)) for word in wrong]
    assert main([*options(garments, tmp_path), f"--root={ROOT / 'data'}", *wrong]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not recorded(tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    garments = write_garments(tmp_path / "broken", train=4, test=2)
    broken = next((garments / "test" / "1").iterdir())
    broken.write_bytes(broken.read_bytes()[:50])
    assert main(options(garments, tmp_path, k="[1]")) == 2
    assert str(broken) in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("*.part"))


def test_it_runs_as_a_script(garments: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "transfer" / "knn.py"), *options(garments, tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "knn_top1_k5" in done.stdout
    assert "searching it takes" in done.stdout
