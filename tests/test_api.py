"""What Python code of one's own imports: examples in docstrings, evaluate, and packages that import fast."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import converters
import pretrain
import transfer
from results.record import read_all
from transfer import evaluate, knn

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the caller is in: birds/ with two classes of eight images."""
    for label, name in enumerate(("owl", "wren")):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng((label, number)).integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "birds" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "birds"


@pytest.mark.parametrize(
    "name", ["converters.read_backbone", "pretrain.UniMoCo", "pretrain.unicon", "transfer.evaluate"]
)
def test_the_examples_in_docstrings_are_right(name: str, birds: Path) -> None:
    package, _, public = name.partition(".")
    thing = getattr(importlib.import_module(package), public)
    globs = vars(importlib.import_module(thing.__module__)).copy()
    (example,) = (t for t in doctest.DocTestFinder(recurse=False).find(thing, name, globs=globs) if t.examples)
    said: list[str] = []
    result = doctest.DocTestRunner().run(example, out=said.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(said)


def test_evaluate_is_the_commands(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command finds what the function has recorded, seeds and options included."""
    given = {"val_fraction": 0.25, "size": 32, "device": "cpu", "workers": 0, "labels": {"ratio": 0.5}, "cache": None}
    records = evaluate("random:resnet18", birds, seeds=[0, 1], label="mine", k=[1], **given)
    records += evaluate("random:resnet18", birds, ["linear"], label="mine", penalties=[0.1], **given)
    assert [(record.task, record.seed) for record in records] == [("knn", 0), ("knn", 1), ("linear", 0)]
    assert sorted(map(str, read_all(Path("runs/records")))) == sorted(map(str, records))
    assert {record.config["labels"]["ratio"] for record in records} == {0.5}
    assert {record.backbone["label"] for record in records} == {"mine"}
    capsys.readouterr()
    words = ["--ckpt=random:resnet18", f"--data={birds}", "--val-fraction=0.25", "--size=32", "--device=cpu"]
    assert knn.main([*words, "--labels.ratio=0.5", "--label=mine", "--k=[1]", "--seeds", "0", "1"]) == 0
    assert capsys.readouterr().out.count("on record in runs/records") == 2
    assert evaluate("random:resnet18", data=birds, dry_run=True, tasks=["knn", "linear"], **given) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ["kn"]}, "task 'kn': one of knn, linear, finetune, svm, detect, segment; did you mean knn"),
        ({"tasks": "knn"}, r"give a list, \['knn'\]"),
        ({"labelz": "x"}, "--labelz: unknown option; did you mean --label?"),
        ({"k": "many"}, "--k"),
        ({"data": "no/such", "val_fraction": 0.2}, "no such file or folder"),
        ({"ckpt": "missing.pth", "val_fraction": 0.2}, "missing.pth"),
    ],
)
def test_a_mistake_is_a_value_error(given: dict[str, object], message: str, birds: Path) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(**{"ckpt": "random:resnet18", "data": birds, "device": "cpu", **given})  # type: ignore[arg-type]
    assert not Path("runs/records").exists()


def test_packages_are_imported_without_torch() -> None:
    code = "import sys, transfer, pretrain, converters; print([n for n in ('torch', 'timm') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for package in (transfer, pretrain, converters):
        assert all(hasattr(package, name) for name in package.__all__)
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = package.nothing
